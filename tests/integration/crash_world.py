"""A stand whose gateway kills itself, or is killed, at a given passage; and what must hold afterwards.

A *passage* is a moment between which and the next a crash can make a difference. Those inside the gateway
are its own (`disturbed`); those at its peers are counted here, because only they know that the last byte
of a request has arrived, or that an answer has been read.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import error, reactor
from twisted.internet.threads import deferToThread
from twisted.web.client import ResponseFailed

from drimbox.sim.dmp_service import Request
from drimbox.sim.listening import utc_now
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.peers import find_program
from drimbox.sim.ris import NoAck
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from drimbox.sim.study_objects import add_key_objects
from tests.integration.disturbed_stand import DisturbedStand
from tests.integration.feed_stand import POOL, Studies, kos_instances
from tests.integration.waiting import pause, until

#: Rows of the outbox worked on at once, by default.
PARALLEL = 2
#: How the audit trail calls the transactions of the DMP.
AUDITED = {"TD0.2": "TD0.2", "TD2.1": "ITI-41", "TD3.1": "ITI-18", "TD3.3c": "ITI-57"}
_STATES = {"Approved": "published", "Deprecated": "replaced", "Deleted": "depublished"}


@attrs.frozen
class Point:
    """The `number`th time that something is passed by."""

    passage: str
    number: int


class PeerPassages:
    """Counts what peers see of the gateway, from any thread, and has it killed at the point ordered."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        self._lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self._order: Point | None = None
        self.fired = False

    def watch(self, point: Point | None = None) -> None:
        """Count from now on."""
        with self._lock:
            self.seen.clear()
            self._order, self.fired = point, False

    def __call__(self, passage: str) -> bool:
        """Come by `passage`; return True when the gateway was killed for it."""
        with self._lock:
            self.seen[passage] += 1
            if self._order != Point(passage, self.seen[passage]):
                return False
            self._order, self.fired = None, True
            self._kill()
            return True


class WatchedPacs(SimulatedPacs):
    """A PACS that tells what reaches it."""

    passages: PeerPassages | None = None

    def note(self, kind: str, **details: object) -> None:
        """Tell before it is answered."""
        super().note(kind, **details)
        if self.passages is not None:
            self.passages(f"PACS: {kind}")


class CrashStand(DisturbedStand):
    """One PACS, one gateway that dies on demand."""

    def __init__(self, folder: Path) -> None:
        self.pacs = WatchedPacs("PACS")
        self.pacs.start()
        super().__init__(
            folder,
            [PacsAddress("PACS", self.pacs.port, POOL)],
            ris={"PACS-Z": "PACS-Z"},
            extra={"dmp": {"timeout": "10"}, "wado": {"instance_level": "true"}},
        )
        self.pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, self.dicom_port)))
        self.studies = Studies(folder / "studies")
        self.peers = PeerPassages(self._kill)
        self.pacs.passages = self.peers
        self._chain: tuple[int, str] | None = None

    def _kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    async def down(self) -> None:
        """Stop everything."""
        await self.stop()
        self.pacs.stop()

    def _answer(self, plain: Callable[[Any, Request], None]) -> Callable[[Any, Request], None]:
        answer = super()._answer(plain)

        def watched(web_request: Any, request: Request) -> None:
            transaction = self.dmp.service.identify(request)
            if self.peers(f"DMP: {transaction} arrived"):
                # As if the power had failed there too: read, and not carried out.
                self.dmp.service.record(request, transaction, "thrown away", utc_now())
                return
            answer(web_request, request)
            # What it answers has not left yet.
            self.peers(f"DMP: {transaction} carried out")

        return watched

    # -- crash points ------------------------------------------------------------------------------

    def watch(self, point: Point | None = None) -> None:
        """Count passages from now on, and die at this one."""
        own = point is not None and not point.passage.startswith(("DMP:", "PACS:", "RIS:"))
        if own and point is not None:
            self.disturbance.watch(point.passage, point.number)
        else:
            self.disturbance.watch()
        self.peers.watch(None if own else point)

    def points(self) -> list[Point]:
        """Return every point passed since `watch`."""
        found = Counter(self.disturbance.passages()) + self.peers.seen
        return [Point(passage, n) for passage, times in found.items() for n in range(1, times + 1)]

    # -- senders that send again -------------------------------------------------------------------

    async def told(self, message: bytes) -> bool:
        """Send a message; False when the gateway died before it said anything."""
        try:
            ack = await self.send(message)
        except (NoAck, error.ConnectError, error.ConnectionClosed):
            return False
        assert ack.code == "AA", ack
        self.peers("RIS: acknowledged")
        return True

    async def noted(self, note: Path) -> bool:
        """Store a key object as the PACS does; False when it got no success."""
        command = [find_program("storescu"), "-aet", "PACS", "-aec", "DRIMBOX", "-to", "5", "-ta", "30"]
        command += ["-td", "30", LOOPBACK, str(self.dicom_port), str(note)]
        done: Any = await deferToThread(subprocess.run, command, capture_output=True, timeout=60)
        if done.returncode == 0:
            self.peers("PACS: note acknowledged")
        return bool(done.returncode == 0)

    # -- what must hold ----------------------------------------------------------------------------

    def audit_mark(self) -> int:
        """Return the number of the last audit event."""
        return int(self.query("SELECT last_id FROM audit_head")[0][0])

    def check_record(self, study: GeneratedStudy, versions: Sequence[str]) -> None:
        """The DMP holds exactly these versions of the study's KOS, oldest first, and the archive agrees.

        The current one lists what the PACS holds.
        """
        entries = self.kos(study, None)
        held = [entry.status.rpartition(":")[2] for entry in entries]
        assert held == list(versions), (study.study_uid, held)
        current = [entry for entry in entries if entry.status.endswith(":Approved")]
        assert [kos_instances(entry) for entry in current] == [self._in_pacs(study)] * len(current)
        rows = self.query(
            "SELECT sop_instance_uid, state, entry_uuid FROM kos WHERE study_uid = ? ORDER BY id",
            study.study_uid,
        )
        expected = [
            (entry.unique_id, _STATES[state], entry.entry_uuid)
            for entry, state in zip(entries, held, strict=True)
        ]
        assert rows == expected

    def _in_pacs(self, study: GeneratedStudy) -> dict[str, set[str]]:
        """Return what the PACS holds of a study: instances by series."""
        found: dict[str, set[str]] = {}
        for entry in self.pacs.index.entries():
            if entry.uid("StudyInstanceUID") == study.study_uid:
                found.setdefault(entry.uid("SeriesInstanceUID"), set()).add(entry.uid("SOPInstanceUID"))
        return found

    def check_no_double(self) -> None:
        """No document of the DMP was ever registered twice."""
        uids = [entry.unique_id for entry in self.dmp.service.registry.entries.values()]
        assert len(uids) == len(set(uids))

    def check_audit(self, since: int, exchanges: Mapping[str, int], *, crashed: bool) -> None:
        """The chain is whole; each exchange since `since` is audited, but for those cut by a crash.

        Of those, whatever changed the record is audited all the same.
        """
        self._check_chain()
        rows = self.query("SELECT payload FROM audit WHERE id > ? ORDER BY id", since)
        events = [json.loads(row[0])["event"] for row in rows]
        told = Counter(event["event_type"][0] for event in events if event["event_type"])
        missing = {kind: count - told[AUDITED[kind]] for kind, count in exchanges.items()}
        lost = sum(count for count in missing.values() if count > 0)
        assert lost <= (PARALLEL if crashed else 0), missing

    def check_changes_audited(self, study: GeneratedStudy, publications: int, removals: int) -> None:
        """So many publications and removals of the study succeeded: each is in the trail."""
        good = Counter(
            event["event_type"][0] for event in self.audits(study.study_uid) if event["outcome"] == 0
        )
        assert good["ITI-41"] >= publications
        assert good["ITI-57"] >= removals

    def _check_chain(self) -> None:
        """Walk what was added to the audit trail since the last time."""
        last, link = self._chain or (0, "0" * 64)
        rows = self.query("SELECT id, payload, prev_hash, hash FROM audit WHERE id > ? ORDER BY id", last)
        for number, payload, previous, link_now in rows:
            assert number == last + 1
            assert previous == link
            assert link_now == hashlib.sha256((link + payload).encode()).hexdigest()
            last, link = number, link_now
        assert self.query("SELECT last_id, hash FROM audit_head") == [(last, link)]
        self._chain = last, link

    def exchanges_count(self) -> Counter[str]:
        """Count the requests that reached the DMP, by transaction."""
        return Counter(each.transaction for each in self.dmp.service.exchanges)

    async def ended_or(self, condition: Callable[[], bool], *, seconds: float = 60.0) -> bool:
        """Wait until the gateway has died (True), or the work is done (False)."""
        clock: Any = reactor
        limit = clock.seconds() + seconds
        while self.running:
            if condition() and await self._nothing_waits():
                return False
            assert clock.seconds() < limit, "neither dead nor done"
            await pause(0.02)
        return True

    async def _nothing_waits(self) -> bool:
        try:
            return await self.waiting() == 0
        except (error.ConnectError, error.ConnectionClosed, ResponseFailed):
            # It died while it was asked.
            return False

    async def collect(self) -> None:
        """Wait for the end of a process that was killed, or killed itself."""
        await until(lambda: not self.running, what="the death of the gateway")
        await self.kill_gateway()


def rejection_note(study: GeneratedStudy, count: int) -> Path:
    """Make an IOCM note that rejects the first images of a study."""
    note = add_key_objects(study, title="113039", targets=study.instances[:count])
    return note.instances[-1].path
