# Everything lives in .venv/ of this checkout. `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: setup system lint test soak bench demo lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements/dev.txt pyproject.toml twisted/plugins/drimbox_plugin.py
	@echo "== environnement Python ($(VENV))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Debian packages of the peers used by the tests; only root can install them.
system:
	@./packaging/test-peers.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup system
	$(BIN)/python -m pytest $(PYTEST_ARGS)

soak: setup system
	DRIMBOX_SOAK=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

bench: setup system
	$(BIN)/python -m bench

demo: setup
	$(BIN)/python -m drimbox.sim.demo $(if $(ONCE),--once,)

lock:
	$(BIN)/python -m piptools compile -q --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-emit-trusted-host --strip-extras --allow-unsafe --no-header -o requirements/runtime.txt pyproject.toml
	$(BIN)/python -m piptools compile -q --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-emit-trusted-host --strip-extras --allow-unsafe --no-header --extra dev -o requirements/dev.txt pyproject.toml

clean:
	rm -rf $(VENV) reports .demo bench/data
