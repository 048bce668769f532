"""One examination: every link, side by side, each within its own time, and one ceiling over all.

What a link says is told as it comes. Whatever fails in an unforeseen way costs its own finding alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.config import Config
from drimbox.doctor import machine
from drimbox.doctor.doors import front_ends
from drimbox.doctor.exits import Exits
from drimbox.doctor.findings import Finding, State, bad
from drimbox.doctor.lists import Lists
from drimbox.doctor.pacs import PacsDoors, try_site
from drimbox.doctor.revocation import Answers
from drimbox.doctor.servers import Servers
from drimbox.ports import Clock, InThread
from drimbox.trust.whitelist import WhitelistHolder

log = Logger()
#: In which order findings are shown.
ORDER = (
    "configuration",
    "certificate",
    "disk",
    "backup",
    "clock",
    "store",
    "node",
    "listener",
    "front-end",
    "ris",
    "pacs-echo",
    "pacs-find",
    "pacs-move",
    "dmp",
    "psc",
    "whitelist",
    "crl",
    "ocsp",
    "probes",
    "mail",
    "webhook",
    "atna",
)

#: One part of an examination: what it is called when it breaks, and the work.
Part = tuple[str, Callable[[], Awaitable[Sequence[Finding]]]]


@attrs.frozen
class Doors:
    """What an examination needs from outside."""

    config: Config
    reactor: Any
    clock: Clock
    in_thread: InThread
    whitelist: WhitelistHolder
    pacs: PacsDoors
    #: What else is known where it runs: configuration, store, listeners.
    own: tuple[Part, ...]


class Examination:
    """An examination on its way; `findings` grows while it runs."""

    def __init__(self, doors: Doors, study: str = "", *, send: bool = False) -> None:
        """`study` is the one to ask the PACS for; with `send`, test messages leave by mail and webhook."""
        self.findings: list[Finding] = []
        self._doors = doors
        self._study = study
        self._send = send

    async def run(self) -> None:
        """Look at everything; return when all is said, or `config.doctor.ceiling` is over."""
        doors = self._doors
        work = gatherResults(
            [Deferred.fromCoroutine(self._part(name, look)) for name, look in self._parts()]
        )
        work.addTimeout(doors.config.doctor.ceiling, doors.reactor)
        try:
            await work
        except DeferredTimeout:
            text = f"examen interrompu après {doors.config.doctor.ceiling:.0f} s"
            self.findings.append(
                bad("examination", "durée", text, "voir ce qui manque ci-dessus, et recommencer")
            )

    async def _part(self, name: str, look: Callable[[], Awaitable[Sequence[Finding]]]) -> None:
        try:
            self.findings += await look()
        except CancelledError:
            raise
        except Exception as error:
            log.failure("doctor: {name} failed", failure=Failure(), name=name)
            text = f"examen impossible ({type(error).__name__})"
            self.findings.append(bad(name, "examen", text, "voir le journal du service"))

    def _parts(self) -> Iterable[Part]:
        doors, config = self._doors, self._doors.config
        servers = Servers(config, doors.reactor, doors.clock, doors.in_thread)
        lists = Lists(config, doors.whitelist, doors.reactor, doors.clock, doors.in_thread)
        exits = Exits(config, doors.reactor, doors.clock, doors.in_thread, send=self._send)
        answers = Answers(config, doors.reactor, doors.clock, doors.in_thread)
        yield from doors.own
        yield (
            "certificate",
            lambda: doors.in_thread(lambda: machine.certificates(config, doors.clock.now())),
        )
        yield "disk", lambda: doors.in_thread(lambda: machine.disks(config))
        yield "backup", lambda: doors.in_thread(lambda: machine.backups(config, doors.clock.now()))
        yield "clock", lambda: doors.in_thread(lambda: [machine.synchronised()])
        for site in config.sites:
            yield "pacs-echo", partial(try_site, config, site, doors.pacs, self._study)
        for structure in config.structures:
            yield "dmp", partial(servers.dmp, structure)
        yield "psc", partial(_one, servers.psc)
        yield "whitelist", lists.whitelist
        yield "crl", lists.crls
        if config.trust.ocsp != "off":
            yield "ocsp", answers.ocsp
        yield "probes", lists.probes
        yield "front-end", partial(_at_once, lambda: front_ends(config))
        if config.notifications.mail is not None:
            yield "mail", partial(exits.mail, config.notifications.mail)
        if config.notifications.webhook is not None:
            yield "webhook", partial(exits.webhook, config.notifications.webhook)
        if config.audit.atna is not None:
            yield "atna", partial(exits.atna, config.audit.atna)


async def _at_once(look: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    return look()


async def _one(look: Callable[[], Awaitable[Finding]]) -> list[Finding]:
    return [await look()]


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings in the order they are shown, whatever came first."""
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(findings, key=lambda each: (places.get(each.check, len(places)), each.subject))


def healthy(findings: Iterable[Finding]) -> bool:
    """Say whether nothing is broken; what is doubtful, or was not tried, is not."""
    return all(each.state is not State.ERROR for each in findings)
