"""`twistd drimbox`: what happens before the first service starts."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Application, IService, MultiService
from twisted.logger import ILogObserver
from twisted.plugin import IPlugin
from twisted.python.components import Componentized

from drimbox import tap
from drimbox.config import Config
from tests.operator_files import good_config

ROOT = Path(__file__).parent.parent


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Stand a composition root in for the real one; return the configurations it was asked to serve."""
    asked: list[Config] = []

    def make_service(config: Config, path: Path) -> MultiService:
        asked.append(config)
        return MultiService()

    module = types.ModuleType("drimbox.service")
    module.make_service = make_service  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "drimbox.service", module)
    monkeypatch.setattr(logging.getLogger(), "handlers", list(logging.getLogger().handlers))
    return asked


def options(path: Path) -> tap.Options:
    parsed = tap.Options()
    parsed.parseOptions(["--config", str(path)])
    parsed.parent = {"nodaemon": 1}
    return parsed


def test_service_is_made_from_the_configuration(tmp_path: Path, served: list[Config]) -> None:
    service: Any = tap.makeService(options(good_config(tmp_path)))
    assert IService.providedBy(service)
    assert len(list(service)) == 1
    assert served[0].drimbox.system_id == "349"
    assert gc.isenabled()


def test_garbage_is_looked_for_again_when_the_service_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "drimbox.service", None)
    with pytest.raises(ImportError):
        tap.makeService(options(good_config(tmp_path)))
    assert gc.isenabled()


def test_the_application_gets_our_observer(tmp_path: Path, served: list[Config]) -> None:
    path = good_config(tmp_path, extra='\n[log]\nfile = "drimbox.log"\n')
    application: Componentized = Application("drimbox")
    service: Any = tap.makeService(options(path))
    service.setServiceParent(application)
    observer: Any = application.getComponent(ILogObserver)
    observer({"log_format": "un essai", "log_time": 0})
    assert json.loads((tmp_path / "drimbox.log").read_text())["message"] == "un essai"


def test_warnings_are_logged_at_start(
    tmp_path: Path, served: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(tap, "log", types.SimpleNamespace(warn=lambda _, **fields: said.append(fields)))
    service: Any = tap.makeService(options(good_config(tmp_path, pool='["BOX1"]')))
    assert said == []
    service.startService()
    assert [each["path"] for each in said] == ["site[0].pacs.pool"]
    service.stopService()


def test_wrong_configuration_exits_1_with_every_mistake(
    tmp_path: Path, served: list[Config], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = good_config(tmp_path, port="0", base_url='"http://x.fr"')
    with pytest.raises(SystemExit) as caught:
        tap.makeService(options(path))
    assert caught.value.code == 1
    said = capfdbinary.readouterr().err.decode("utf-8")
    assert "site[0].pacs.port (ligne 41) : 0 n'est pas un port (1 à 65535)" in said
    assert "dmp.base_url" in said
    assert served == []


def test_daemon_without_log_file_is_refused(tmp_path: Path, served: list[Config]) -> None:
    parsed = options(good_config(tmp_path))
    parsed.parent = {"nodaemon": 0}
    with pytest.raises(SystemExit):
        tap.makeService(parsed)
    parsed = options(good_config(tmp_path, extra='\n[log]\nfile = "x.log"\n'))
    parsed.parent = {"nodaemon": 0}
    assert tap.makeService(parsed)


def test_log_file_that_cannot_be_opened_exits_1(tmp_path: Path, served: list[Config]) -> None:
    path = good_config(tmp_path, extra='\n[log]\nfile = "vers/nulle-part"\n')
    (tmp_path / "vers").symlink_to(tmp_path / "state")
    (tmp_path / "state" / "nulle-part").mkdir()
    with pytest.raises(SystemExit):
        tap.makeService(options(path))


def test_configuration_path_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("/tmp/x.toml", "/tmp/x.toml"), (None, "/etc/drimbox/drimbox.toml")):
        monkeypatch.delenv("DRIMBOX_CONFIG", raising=False)
        if value is not None:
            monkeypatch.setenv("DRIMBOX_CONFIG", value)
        parsed = tap.Options()
        parsed.parseOptions([])
        assert parsed["config"] == expected


def test_plugin_is_a_service_maker() -> None:
    from twisted.application.service import IServiceMaker

    words: dict[str, Any] = {}
    source = (ROOT / "twisted" / "plugins" / "drimbox_plugin.py").read_text(encoding="utf-8")
    exec(compile(source, "drimbox_plugin.py", "exec"), words)
    maker = words["drimbox"]
    assert IPlugin.providedBy(maker)
    assert IServiceMaker.providedBy(maker)
    assert (maker.tapname, maker.module) == ("drimbox", "drimbox.tap")


# --- the real twistd --------------------------------------------------------------------------------

#: Runs twistd as its script does, on the plugin of this tree whatever copy is installed.
TWISTD = """
import sys, types
import twisted.plugins
twisted.plugins.__path__.insert(0, {plugins!r})
{stand_in}
from twisted.scripts.twistd import run
sys.argv[0] = "twistd"
run()
"""
STAND_IN = """
from twisted.application.service import Service
class Loud(Service):
    def startService(self):
        super().startService()
        from twisted.internet import reactor
        from twisted.logger import Logger
        log = Logger(namespace="drimbox.essai")
        # Once the reactor runs, and so has its signal handlers.
        reactor.callLater(0, lambda: log.info("démarré {site}", site=self.name_of))
    def stopService(self):
        super().stopService()
        from twisted.logger import Logger
        Logger(namespace="drimbox.essai").info("arrêté")
def make_service(config, path):
    service = Loud()
    service.name_of = config.sites[0].name
    return service
module = types.ModuleType("drimbox.service")
module.make_service = make_service
sys.modules["drimbox.service"] = module
"""


def twistd(folder: Path, *arguments: str, stand_in: str = STAND_IN) -> subprocess.Popen[bytes]:
    code = TWISTD.format(plugins=str(ROOT / "twisted" / "plugins"), stand_in=stand_in)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, "-n", "--pidfile=", "drimbox", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_twistd_starts_logs_json_and_stops_at_sigterm(tmp_path: Path) -> None:
    process = twistd(tmp_path, "--config", str(good_config(tmp_path)))
    assert process.stdout is not None
    try:
        first = json.loads(process.stdout.readline())
        assert (first["message"], first["site"]) == ("démarré radio", "radio")
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    lines = [json.loads(line) for line in rest.decode("utf-8").splitlines()]
    assert [line["message"] for line in lines] == ["arrêté"]
    # Once everything has stopped, twistd ends by the signal it was given; systemd counts that as clean.
    assert process.returncode == -signal.SIGTERM
    assert errors == b""


def test_twistd_with_a_wrong_configuration_prints_french_and_no_traceback(tmp_path: Path) -> None:
    process = twistd(tmp_path, "--config", str(good_config(tmp_path, port="70000")))
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == b""
    assert "site[0].pacs.port (ligne 41) : 70000 n'est pas un port (1 à 65535)" in errors.decode("utf-8")
    assert b"Traceback" not in errors


@pytest.mark.parametrize("before_the_reactor", [True, False])
def test_a_gateway_that_cannot_start_says_why_and_ends(tmp_path: Path, before_the_reactor: bool) -> None:
    """Whether it fails at once, before twistd runs its reactor, or after a wait."""
    path = good_config(tmp_path)
    if before_the_reactor:
        (tmp_path / "state" / "restauration.inachevee").write_text("une sauvegarde\n")
        words = "DRIMbox ne démarre pas : Une restauration n'est pas terminée"
    else:
        (tmp_path / "state" / "drimbox.db").write_bytes(b"autre chose qu'une base\n" * 1000)
        words = "DRIMbox ne démarre pas : base de données : ce fichier n'est pas une base de données"
    process = twistd(tmp_path, "--config", str(path), stand_in="")
    try:
        out, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1, errors
    told = [json.loads(line) for line in out.decode("utf-8").splitlines()]
    assert any(each["message"].startswith(words) for each in told), told


def test_timers_do_not_depend_on_the_time_of_day(tmp_path: Path) -> None:
    stand_in = STAND_IN.replace("self.name_of", "reactor.seconds is time.monotonic")
    process = twistd(tmp_path, "--config", str(good_config(tmp_path)), stand_in="import time\n" + stand_in)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["site"] is True
    finally:
        process.kill()
        process.communicate(timeout=60)
