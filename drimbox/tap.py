"""`twistd drimbox --config FILE`: reads the configuration, starts the logs, and asks for the service.

`twistd` builds the service, then chooses the log observer from its application, then starts. The
service's parent is that application, so the moment it is attached is when `[log]` can take effect.
Nothing is listened to and no file is written before `startService`.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

from twisted.application.service import IService, MultiService
from twisted.logger import ILogObserver, Logger
from twisted.python import usage
from twisted.python.components import Componentized

from drimbox.commands.common import CONFIG_VARIABLE, DEFAULT_CONFIG, mistake_lines
from drimbox.config import Config
from drimbox.configfile import ConfigErrors, ConfigMistake, check, load
from drimbox.configfile.report import cannot_read
from drimbox.logs import bridge_stdlib, make_observer

log = Logger()


class Options(usage.Options):
    """The plugin's own command line."""

    synopsis = "[--config FICHIER]"
    longdesc = "Passerelle d'imagerie DRIMbox (PACS <-> DRIM-M)."

    optParameters: ClassVar[list[list[Any]]] = [
        [
            "config",
            "c",
            None,
            f"Fichier de configuration (sinon {CONFIG_VARIABLE}, sinon {DEFAULT_CONFIG}).",
        ]
    ]

    def postOptions(self) -> None:
        """Fill in the path when the command line gave none."""
        if self["config"] is None:
            self["config"] = os.environ.get(CONFIG_VARIABLE, str(DEFAULT_CONFIG))


class Appliance(MultiService):
    """The root of the services; brings its log observer to the application it is attached to."""

    def __init__(self, observer: Any, warnings: list[ConfigMistake]) -> None:
        MultiService.__init__(self)
        self._observer = observer
        self._warnings = warnings

    def setServiceParent(self, parent: Any) -> None:
        """Attach to an application (or a service), and set the observer where it is an application."""
        MultiService.setServiceParent(self, parent)
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)

    def startService(self) -> None:
        """Say what the configuration leaves doubtful, then start everything."""
        for warning in self._warnings:
            log.warn("configuration : {path} : {problem}", path=warning.path, problem=warning.problem)
        MultiService.startService(self)


def fail(lines: list[str]) -> SystemExit:
    """Print French lines on stderr, whatever its encoding, and return the exit to raise."""
    sys.stderr.flush()
    text = "\n".join(lines) + "\n"
    buffer = getattr(sys.stderr, "buffer", None)
    if buffer is None:
        sys.stderr.write(text)
    else:
        buffer.write(text.encode("utf-8", "backslashreplace"))
        buffer.flush()
    return SystemExit(1)


def read(path: str) -> tuple[Config, list[ConfigMistake]]:
    """Return the configuration and its warnings; exit 1 with every mistake when there is one."""
    file = Path(path).absolute()
    try:
        config = load(file)
    except ConfigErrors as errors:
        lines = mistake_lines("erreur", errors.mistakes)
        raise fail([f"drimbox : configuration inutilisable ({file})", *lines]) from None
    return config, check(file)[1]


def _time_by_the_monotonic_clock() -> None:
    """Let no timer depend on the time of day.

    Twisted times by the wall clock: set back by a day, all that waits (time-outs, queues) would wait for a
    day. A reactor that runs already has timers of the other clock, and keeps it.
    """
    from twisted.internet import reactor

    mine: Any = reactor
    if not mine.running:
        mine.seconds = time.monotonic


def _composition_root() -> Callable[[Config, Path], IService]:
    """Import what makes the service, and with it everything: only once the configuration is good.

    Nothing that is imported is garbage: looking for some meanwhile took a fifth of the time.
    """
    looking = gc.isenabled()
    gc.disable()
    try:
        from drimbox.service import make_service
    finally:
        if looking:
            gc.enable()
    return make_service


def makeService(options: Options) -> IService:
    """Return the whole gateway as one service. Exits 1, with no traceback, on a wrong configuration."""
    config, warnings = read(options["config"])
    parent: Any = options.parent or {}
    daemon = parent.get("nodaemon", True) in (0, False)
    if daemon and config.log.file is None:
        raise fail(
            [
                "drimbox : en arrière-plan, le journal sur la sortie standard serait perdu",
                "  -> ajouter -n (twistd -n drimbox …), ou écrire [log] file = … dans la configuration",
            ]
        )
    try:
        observer = make_observer(config.log)
    except OSError as error:
        raise fail([f"drimbox : journal {config.log.file} : {cannot_read(error)}"]) from None
    bridge_stdlib()

    _time_by_the_monotonic_clock()
    make_service = _composition_root()
    root = Appliance(observer, warnings)
    cast(Any, make_service(config, Path(options["config"]).absolute())).setServiceParent(root)
    service: IService = root
    return service
