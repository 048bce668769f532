"""The store: its server and our rights on it, its nodes, what each RIS sent last.

process: `Database.run` --+
                          +--> facts --> findings
alone: a connection ------+
"""

from __future__ import annotations

import ipaddress
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout

from drimbox.config import Config, Hl7Settings
from drimbox.doctor import own
from drimbox.doctor.findings import Finding, State, bad, doubtful, good
from drimbox.ports import Clock
from drimbox.presence import MAX_AHEAD
from drimbox.secretfile import SecretUnusable
from drimbox.store import engine as engines
from drimbox.store.errors import NodeRefused, StoreError
from drimbox.store.inspection import Server, StoreFacts, commit_something, look
from drimbox.store.nodes import SeenNode
from drimbox.store.revision import newest, require_current
from drimbox.stores import Stores

#: The oldest server that DRIMbox is made for (docs/exploitation-noeuds.md).
OLDEST = 150_000
#: Seconds that a commit takes at most on a store that is well.
SLOW_COMMIT = 0.5
#: A RIS that has sent nothing for so long is doubtful: holidays are shorter.
SILENT = timedelta(days=7)
_BASE = "base de données"
#: Seconds that the running process waits for its store; what libpq is told when the doctor looks alone.
_TIMEOUT = 15.0
_PATIENCE = {"options": "-c statement_timeout=10s -c lock_timeout=10s", "connect_timeout": "10"}


def beside(config: Config, now: datetime) -> list[Finding]:
    """Look at the store while the service is stopped. Blocks."""
    found = own.store(config.store_url, config.store.password_file)
    if any(each.state is not State.OK for each in found):
        # Absent, or not to be read: there is nothing more to see.
        return found
    try:
        url = engines.parse_url(config.store_url, config.store.password_file)
        facts, seconds = _look_beside(url, [each.name for each in config.ris])
    except (StoreError, SQLAlchemyError, SecretUnusable, OSError) as error:
        text = f"examen impossible ({type(error).__name__})"
        return [*found, bad("store", _BASE, text, "vérifier [store] url et l'état de la base, recommencer")]
    return found + judge(config, facts, seconds, now)


async def inside(config: Config, stores: Stores, clock: Clock, reactor: Any) -> list[Finding]:
    """Look at the store of the running process; the commit tried is the one that shows that it lives."""

    async def ask() -> list[Finding]:
        names = [each.name for each in config.ris]
        began = reactor.seconds()
        await stores.nodes.beat()
        commit = reactor.seconds() - began
        facts = await stores.database.read(lambda connection: look(connection, names))
        return judge(config, facts, commit, clock.now())

    asking = Deferred.fromCoroutine(ask())
    asking.addTimeout(_TIMEOUT, reactor)
    try:
        return [good("store", _BASE, "répond"), *await asking]
    except DeferredTimeout:
        text = f"pas de réponse en {_TIMEOUT:.0f} s"
    except NodeRefused as error:
        return [bad("store", _BASE, str(error), "ce nœud ne prend plus de travail : en renommer un")]
    except (StoreError, SQLAlchemyError) as error:
        text = f"ne répond pas ({type(error).__name__})"
    return [bad("store", _BASE, text, own.STORE)]


def _look_beside(url: URL, ris: Sequence[str]) -> tuple[StoreFacts, float | None]:
    if url.get_backend_name() == "sqlite":
        engine = engines.reader_engine(url, 1)
    else:
        said = {key: value for key, value in _PATIENCE.items() if key not in url.query}
        engine = engines.writer_engine(url.update_query_dict(said), 1)
    try:
        with engine.connect() as connection:
            require_current(connection)
            facts = look(connection, ris)
        if facts.server is None or facts.server.standby:
            return facts, None
        with engine.begin() as connection:
            began = time.monotonic()
            commit_something(connection)
        return facts, time.monotonic() - began
    finally:
        engine.dispose()


def judge(config: Config, facts: StoreFacts, commit: float | None, now: datetime) -> list[Finding]:
    """Say what facts are worth; `commit` is the seconds that a commit took, None when none was tried."""
    found = [] if facts.server is None else _server(facts.server)
    if commit is not None:
        found.append(_commit(commit))
    # A single box has no other node.
    if facts.server is not None or len(facts.nodes) > 1:
        found += _nodes(facts.nodes, config.drimbox.node, now)
    return [*found, *_ris(config, facts, now)]


def _server(server: Server) -> list[Finding]:
    version = server.version.split(" ")[0]
    if server.standby:
        mend = "donner dans [store] url l'adresse du serveur principal"
        return [bad("store", _BASE, f"PostgreSQL {version} : copie en lecture seule", mend)]
    found = []
    if server.number < OLDEST:
        text = f"PostgreSQL {version}, plus ancien que {OLDEST // 10_000}"
        found.append(doubtful("store", _BASE, text, "mettre à niveau PostgreSQL"))
    if server.unsafe:
        text = ", ".join(f"{name} = {value}" for name, value in sorted(server.unsafe.items()))
        mend = "remettre à « on » dans postgresql.conf : une coupure peut perdre un compte rendu acquitté"
        found.append(bad("store", _BASE, f"PostgreSQL {version} : {text}", mend))
    if server.missing:
        shown = ", ".join(server.missing[:5]) + (" …" if len(server.missing) > 5 else "")
        mend = "rendre ces droits au compte de [store] url (GRANT), ou l'en faire propriétaire"
        found.append(bad("store", _BASE, f"droits absents : {shown}", mend))
    if not server.creates:
        mend = "GRANT CREATE ON SCHEMA … au compte de [store] url avant la prochaine mise à niveau"
        found.append(doubtful("store", _BASE, "le compte ne peut pas créer de table", mend))
    return found or [good("store", _BASE, f"PostgreSQL {version}, droits et durabilité vérifiés")]


def _commit(seconds: float) -> Finding:
    text = f"écriture confirmée en {1000 * seconds:.0f} ms"
    if seconds > SLOW_COMMIT:
        mend = "voir la charge et le disque de la base : chaque compte rendu attend cette confirmation"
        return doubtful("store", _BASE, text, mend)
    return good("store", _BASE, text)


# -- nodes ---------------------------------------------------------------------------------------------


def _nodes(nodes: Sequence[SeenNode], us: str, now: datetime) -> list[Finding]:
    alive = [each for each in nodes if now <= each.held_until]
    return [
        *[_node(each, us, now) for each in nodes],
        *_differing(alive),
        *_shared("AE title", {each.name: each.titles for each in alive}, "[site.pacs] pool"),
        *_shared(
            "adresse DICOM",
            {each.name: (each.dicom,) for each in alive if _is_its_own(each.dicom)},
            "[dicom] host et port",
        ),
    ]


def _node(node: SeenNode, us: str, now: datetime) -> Finding:
    subject = f"nœud {node.name}"
    if now > node.held_until:
        since = _while(now - node.held_until)
        if node.name == us:
            # The doctor looks alone, after a process that did not leave.
            return good("node", subject, f"arrêté ; bail échu depuis {since}")
        mend = "le redémarrer, ou le laisser : les autres ont son travail, il est oublié après 30 jours"
        return doubtful("node", subject, f"ne donne plus signe de vie, bail échu depuis {since}", mend)
    left = (node.held_until - now).total_seconds()
    seen = (
        f"version {node.version}, schéma {node.revision or 'inconnu'}, bail encore {left:.0f} s, "
        f"horloge {node.ahead:+.1f} s sur la base"
    )
    if abs(node.ahead) > MAX_AHEAD / 4:
        mend = "synchroniser par NTP les horloges de ce nœud et de la base"
        return doubtful("node", subject, seen, mend)
    return good("node", subject, seen)


def _differing(alive: Sequence[SeenNode]) -> list[Finding]:
    """Nodes of two versions work on one store: one of them is to be stopped."""
    versions: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in alive:
        versions[each.version, each.revision].append(each.name)
    if len(versions) < 2:
        return []
    text = " ; ".join(
        f"{', '.join(names)} : version {version}, schéma {revision or 'inconnu'}"
        for (version, revision), names in sorted(versions.items())
    )
    mend = f"mettre tous les nœuds à la même version (la base est au schéma {newest()})"
    return [doubtful("node", "versions", text, mend)]


def _shared(what: str, owned: dict[str, tuple[str, ...]], keys: str) -> list[Finding]:
    """What two living nodes both call theirs: the images that one asks for would come to the other."""
    owners: dict[str, list[str]] = defaultdict(list)
    for name, things in owned.items():
        for each in things:
            owners[each].append(name)
    return [
        bad(
            "node",
            ", ".join(names),
            f"{what} {each} commun à ces nœuds : les images demandées par l'un arrivent chez l'autre",
            f"donner à chaque nœud son {keys}",
        )
        for each, names in sorted(owners.items())
        if len(names) > 1
    ]


def _is_its_own(dicom: str) -> bool:
    """Say whether an address names one machine, whoever says it."""
    try:
        host = ipaddress.ip_address(dicom.rpartition(":")[0])
    except ValueError:
        return False
    return not (host.is_unspecified or host.is_loopback)


# -- who sends -----------------------------------------------------------------------------------------


def _ris(config: Config, facts: StoreFacts, now: datetime) -> Iterable[Finding]:
    for each in config.ris:
        if each.name not in facts.last:
            continue
        last = facts.last[each.name]
        mend = (
            "si c'est inattendu : vérifier dans le RIS l'adresse de cette machine, le port "
            f"{config.hl7.port}{_how(config.hl7)}, MSH-3 et MSH-4 ; ici, [[ris]] sending_application, "
            "sending_facility, addresses, et le pare-feu"
        )
        if last is None:
            yield doubtful("ris", each.name, "aucun message reçu jusqu'ici", mend)
        elif now - last > SILENT:
            yield doubtful("ris", each.name, f"aucun message depuis {_while(now - last)}", mend)
        else:
            yield good("ris", each.name, f"dernier message il y a {_while(now - last)}")


def _how(settings: Hl7Settings) -> str:
    return " (MLLP sur TLS)" if settings.tls is not None else ""


def _while(lasted: timedelta) -> str:
    seconds = max(0, int(lasted.total_seconds()))
    for size, name in ((86400, "j"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"
