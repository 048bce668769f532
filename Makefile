# Everything lives in .venv/ of this checkout. `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: setup system lint test soak bench demo lock dist deb sbom audit clean

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

# JOBS=2: shared by two processes, a file of tests at a time; those marked `alone` run while the other waits.
JOBS ?= 1
test: setup system
	$(BIN)/python -m pytest $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist loadfile --no-loadscope-reorder) $(PYTEST_ARGS)

# The long tests at full size: hours. One alone: DRIMBOX_SOAK=1 .venv/bin/python -m pytest tests/integration/test_mixed.py
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
	$(BIN)/python -m piptools compile -q --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-emit-trusted-host --strip-extras --allow-unsafe --no-header -o requirements/release.txt requirements/release.in
	$(BIN)/python -m piptools compile -q --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-emit-trusted-host --strip-extras --allow-unsafe --no-header -o requirements/build.txt requirements/build.in

# What a release needs and nothing else does has an environment of its own.
RELEASE := .venv-release
$(RELEASE)/.ready: requirements/release.txt
	@test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip --disable-pip-version-check -q install --require-hashes -r requirements/release.txt
	@touch $@

# Wheel and source archive, with what a package index would refuse.
dist: setup $(RELEASE)/.ready
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/python -m hatchling build -t sdist -t wheel
	$(RELEASE)/bin/twine check --strict dist/*.whl dist/*.tar.gz

# The Debian package, for the Python of this Debian.
deb: setup
	packaging/deb/build.sh

# The bill of materials (CycloneDX): every library that is deployed, with its version and hashes.
sbom: setup $(RELEASE)/.ready
	@mkdir -p dist
	$(RELEASE)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
	  -o dist/drimbox.cdx.json requirements/runtime.txt

# Known holes in what is deployed. Asks a vulnerability service, and fails when it could ask nothing.
audit: setup $(RELEASE)/.ready
	$(RELEASE)/bin/pip-audit --require-hashes --disable-pip --strict -r requirements/runtime.txt

clean:
	rm -rf $(VENV) $(RELEASE) dist reports .demo bench/data
