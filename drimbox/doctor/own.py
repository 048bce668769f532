"""What is looked at besides the links: the configuration file, the store, the ports we listen on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from drimbox.config import Config, Listener
from drimbox.configfile import ConfigErrors, ConfigMistake, check, load
from drimbox.doctor.findings import Finding, State, bad, doubtful, good
from drimbox.secretfile import SecretUnusable
from drimbox.store.auditdesk import AuditDesk
from drimbox.store.auditsearch import AuditQuery
from drimbox.store.engine import parse_url
from drimbox.store.errors import StoreError, StoreMissing
from drimbox.store.words import database_reason
from drimbox.systemerrors import system_reason

#: Above the number of any event.
_LAST = 2**62
#: What to do about a store that does not work.
STORE = "vérifier [store] url, l'espace disque et le journal ; à défaut restaurer une sauvegarde"


def configuration(path: Path, running: Config | None = None) -> list[Finding]:
    """Check the file as `drimbox check-config`, and against what runs, when something does. Blocks."""
    errors, warnings = check(path)
    found = [_mistake(each, State.ERROR) for each in errors] + [
        _mistake(each, State.WARNING) for each in warnings
    ]
    if not errors:
        found.append(good("configuration", str(path), "utilisable"))
    if running is not None and not errors and _read(path) != running:
        found.append(
            doubtful(
                "configuration",
                str(path),
                "modifiée depuis le démarrage du service",
                "redémarrer le service pour qu'elle prenne effet, ou la rétablir",
            )
        )
    return found


def _read(path: Path) -> Config | None:
    try:
        return load(path, files=False)
    except ConfigErrors:
        return None


def _mistake(mistake: ConfigMistake, state: State) -> Finding:
    return Finding("configuration", mistake.path, state, mistake.problem, mistake.mend)


def store(url: str, password_file: Path | None = None) -> list[Finding]:
    """Read from the store beside nobody. Blocks."""
    try:
        # The desk reads the version of the store, and part of the trail.
        with AuditDesk(parse_url(url, password_file)) as desk:
            next(desk.search(AuditQuery(), limit=1, before=_LAST), None)
    except StoreMissing:
        return [
            doubtful(
                "store", "base de données", "absente", "rien à faire avant le premier démarrage du service"
            )
        ]
    except StoreError as error:
        return [bad("store", "base de données", str(error), STORE)]
    except SecretUnusable as error:
        mend = "remettre le mot de passe dans le fichier de [store] password_file, lisible du service"
        return [bad("store", "base de données", str(error), mend)]
    except SQLAlchemyError as error:
        return [bad("store", "base de données", f"illisible ({database_reason(error)})", STORE)]
    except OSError as error:
        return [bad("store", "base de données", f"illisible ({system_reason(error)})", STORE)]
    return [good("store", "base de données", "lisible, de cette version")]


def listeners(config: Config) -> dict[str, Listener]:
    """Return where we listen, by section of the configuration."""
    return {
        name: Listener(settings.host, settings.port)
        for name, settings in (
            ("admin", config.admin),
            ("dicom", config.dicom),
            ("wado", config.wado),
            ("hl7", config.hl7),
        )
    }


def listening(config: Config, open_ports: Sequence[bool]) -> list[Finding]:
    """Say which doors of the running process are open, in the order of `listeners`."""
    return [
        good("listener", name, f"à l'écoute sur {_where(place)}")
        if is_open
        else bad("listener", name, f"n'écoute plus sur {_where(place)}", "redémarrer le service")
        for (name, place), is_open in zip(listeners(config).items(), open_ports, strict=True)
    ]


def free_ports(config: Config, reactor: Any, dicom: Factory) -> tuple[list[Finding], Any]:
    """Try to listen on each port, the service being stopped; return the findings and the DICOM port.

    That port stays open, with `dicom` behind it, for the images of the trial; None when it is not ours.
    """
    found, kept = [], None
    for name, place in listeners(config).items():
        try:
            port = reactor.listenTCP(
                place.port, dicom if name == "dicom" else Factory(), interface=place.host
            )
        except CannotListenError as error:
            found.append(
                bad(
                    "listener",
                    name,
                    f"{_where(place)} : {_why(error)}",
                    "arrêter l'autre programme, donner un autre port, ou une adresse de cette machine",
                )
            )
            continue
        found.append(good("listener", name, f"{_where(place)} est libre (service arrêté)"))
        if name == "dicom":
            kept = port
        else:
            port.stopListening()
    return found, kept


def _why(error: CannotListenError) -> str:
    reason = error.socketError
    return system_reason(reason) if isinstance(reason, OSError) else "écoute impossible"


def _where(place: Listener) -> str:
    return f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}"
