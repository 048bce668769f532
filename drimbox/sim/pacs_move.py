"""One C-MOVE of the simulated PACS: sub-operations, answers, and every way to get them wrong.

Theory of operation. pynetdicom's own C-MOVE provider knows one store association, one order and no
lies, so `SimulatedPacs` hands the request to a `Move` instead. A move runs in the thread of the
association that asked, and in one more per store association when these are parallel. The counts are
those of PS3.4 C.4.2; `Behaviour` says where they are false.
"""

from __future__ import annotations

import random
import threading
from io import BytesIO
from typing import Any, Protocol

from pydicom.dataset import Dataset
from pynetdicom.dimse_primitives import C_MOVE
from pynetdicom.dsutils import decode, encode

from drimbox.sim.pacs_association import cut, is_over, misbehave, wait
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.pacs_index import Entry
from drimbox.sim.pacs_store import Payload, StoreAssociation

_WRONG_ORIGINATOR = ("SOMEBODY-ELSE", 4242)
_CANCELLED = 0xFE00
_WARNING = 0xB000
_NOTHING_DONE = 0xA702
_PENDING = 0xFF00
_UNKNOWN_DESTINATION = 0xA801

_Job = tuple[int, Entry]


class Owner(Protocol):
    """What a move needs of its PACS."""

    ae_title: str
    destinations: dict[str, tuple[str, int]]
    stopping: threading.Event

    def retrieve(self, identifier: Dataset) -> list[Entry]:
        """Return what a C-MOVE identifier names."""

    def note(self, kind: str, **details: object) -> None:
        """Remember something for the test."""


class _Ended(Exception):
    """No further sub-operation: stopped half-way, cancelled, or abandoned."""


class Move:
    """Serves one C-MOVE request that came on an acceptor association of pynetdicom.

    `before` is the message id of the C-MOVE that came before it.
    """

    def __init__(
        self,
        owner: Owner,
        association: Any,
        request: C_MOVE,
        context_id: int,
        behaviour: Behaviour,
        before: int,
    ) -> None:
        self._owner = owner
        self._behaviour = behaviour
        self._before = before
        self._association = association
        self._request = request
        self._context_id = context_id
        self._syntax = association._accepted_cx[context_id].transfer_syntax[0]
        self._lock = threading.Lock()
        self._total = self._sent = 0
        self._completed = self._warnings = 0
        self._failed: list[str] = []
        self._final_sent = False
        #: Places at which a connection was cut.
        self._torn: set[int] = set()
        #: Why the sub-operations ended before time: stop, cancel, gone, refused.
        self._end = ""

    def run(self) -> None:
        """Do what the request asks for as the behaviour says; returns when nothing is left to do."""
        behaviour, owner = self._behaviour, self._owner
        identifier = decode(
            self._request.Identifier or BytesIO(),
            self._syntax.is_implicit_VR,
            self._syntax.is_little_endian,
        )
        destination = str(self._request.MoveDestination).strip()
        owner.note("move", destination=destination, identifier=identifier, calling=self._calling)
        if not misbehave(self._association, behaviour.move, owner.stopping):
            return
        if behaviour.move_delay:
            wait(self._association, behaviour.move_delay, owner.stopping)
        if behaviour.move_status is not None:
            self._answer(behaviour.move_status)
            return
        address = owner.destinations.get(destination)
        if address is None:
            self._answer(_UNKNOWN_DESTINATION)
            return
        if behaviour.ignore_level and "SOPInstanceUID" in identifier:
            identifier.QueryRetrieveLevel = "SERIES"
            del identifier.SOPInstanceUID
        entries = owner.retrieve(identifier)
        if behaviour.shuffle:
            random.Random(behaviour.shuffle).shuffle(entries)
        jobs = list(enumerate(entries))
        self._total = len(jobs)
        late = jobs[max(0, len(jobs) - behaviour.late) :] if behaviour.late else []
        self._completed += len(late)
        self._distribute(jobs[: len(jobs) - len(late)], address, destination)
        if self._end == "stop" and behaviour.stop_move:
            cut(self._association)
        elif self._end == "stop" and behaviour.stop == "silent":
            wait(self._association, None, owner.stopping)
        elif self._end != "gone":
            self._finish()
        if late and not self._end and not owner.stopping.wait(behaviour.late_after):
            self._distribute(late, address, destination)
        owner.note("move-over", destination=destination, sent=self._sent, end=self._end)

    @property
    def _calling(self) -> str:
        return str(self._association.requestor.ae_title).strip()

    def _distribute(self, jobs: list[_Job], address: tuple[str, int], destination: str) -> None:
        count = max(1, min(self._behaviour.associations, len(jobs)))
        if not jobs:
            return
        if not self._behaviour.parallel:
            size = -(-len(jobs) // count)
            for start in range(0, len(jobs), size):
                if self._end:
                    break
                self._send_share(jobs[start : start + size], address, destination)
            return
        threads = [
            threading.Thread(
                target=self._send_share, args=(jobs[n::count], address, destination), daemon=True
            )
            for n in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _send_share(self, share: list[_Job], address: tuple[str, int], destination: str) -> None:
        """Send these instances over one association of their own, or several if it must be."""
        while share:
            store = self._open([entry for _, entry in share], address, destination)
            if store is None:
                self._owner.note("store-refused", destination=destination)
                with self._lock:
                    self._failed += [entry.uid("SOPInstanceUID") for _, entry in share]
                return
            try:
                share = self._send_over(store, share, address)
            except _Ended:
                share = []
            if self._end == "stop" and self._behaviour.stop == "silent":
                wait(self._association, None, self._owner.stopping)
            store.release()

    def _open(
        self, entries: list[Entry], address: tuple[str, int], destination: str
    ) -> StoreAssociation | None:
        originator: dict[str, tuple[str | None, int | None]] = {
            "right": (self._calling, self._request.MessageID),
            "absent": (None, None),
            "wrong": _WRONG_ORIGINATOR,
            "other": (self._calling, self._before),
        }
        store = StoreAssociation(
            self._owner.ae_title, self._behaviour, originator[self._behaviour.originator]
        )
        pairs = [(entry.uid("SOPClassUID"), entry.transfer_syntax) for entry in entries]
        return store if store.open(address, destination, pairs) else None

    def _send_over(
        self, store: StoreAssociation, share: list[_Job], address: tuple[str, int]
    ) -> list[_Job]:
        """Send over one association; return what is left for another one."""
        behaviour = self._behaviour
        for place, (index, entry) in enumerate(share):
            if index in behaviour.astray:
                self._send_astray(entry, address)
            if index in behaviour.tear and index not in self._torn:
                self._torn.add(index)
                store.send_half(Payload.of(entry))
                if not behaviour.resend:
                    with self._lock:
                        self._failed.append(entry.uid("SOPInstanceUID"))
                return share[place + (not behaviour.resend) :]
            self._send_one(store, index, entry)
            if behaviour.reopen:
                return share[place + 1 :]
        return []

    def _send_astray(self, entry: Entry, address: tuple[str, int]) -> None:
        """Send a copy to another title of the same receiver."""
        called = self._behaviour.astray_to
        store = self._open([entry], address, called)
        status = None
        if store is not None:
            status = store.send(Payload.of(entry))
            store.release()
        self._owner.note("astray", uid=entry.uid("SOPInstanceUID"), called=called, status=status)

    def _send_one(self, store: StoreAssociation, index: int, entry: Entry) -> None:
        behaviour = self._behaviour
        self._look_around()
        if behaviour.stop_after is not None and self._sent >= behaviour.stop_after:
            self._stop(store, entry)
        if behaviour.intruder and index == behaviour.intruder_at:
            self._store(store, Payload.intruder(entry, behaviour.intruder))
        if behaviour.final == "early" and index == self._total - 1:
            with self._lock:
                self._completed += 1
            self._finish()
        uid = entry.uid("SOPInstanceUID")
        if index in behaviour.fail:
            with self._lock:
                self._failed.append(uid)
        elif index in behaviour.skip:
            with self._lock:
                self._completed += 1
        else:
            payload = Payload.of(entry)
            for _ in range(2 if index in behaviour.repeat else 1):
                status = self._store(store, payload)
            self._count(uid, status)
        if behaviour.pending and not self._final_sent:
            self._answer(_PENDING)
        if behaviour.pause:
            wait(self._association, behaviour.pause, self._owner.stopping)

    def _store(self, store: StoreAssociation, payload: Payload) -> int | None:
        status = store.send(payload)
        self._owner.note("stored", uid=payload.sop_instance, status=status)
        return status

    def _count(self, uid: str, status: int | None) -> None:
        with self._lock:
            self._sent += 1
            if status == 0x0000:
                self._completed += 0 if self._final_sent else 1
                return
            if status is not None and status >> 12 == 0xB:
                self._warnings += 1
                return
            self._failed.append(uid)
        if status is None or self._behaviour.on_refusal == "abandon":
            self._give_up("refused")

    def _look_around(self) -> None:
        """End the sub-operations when somebody else ended them, or when the one who asked said so."""
        if self._end or self._owner.stopping.is_set():
            self._give_up(self._end or "gone")
        if self._final_sent and self._behaviour.late:
            # Nobody listens to what was asked any more.
            return
        if not self._behaviour.survive_abort and is_over(self._association):
            self._owner.note("move-aborted")
            self._give_up("gone")
        if self._request.MessageID in self._association.dimse.cancel_req:
            self._owner.note("cancel")
            if not self._behaviour.ignore_cancel:
                self._give_up("cancel")
            self._association.dimse.cancel_req.clear()

    def _give_up(self, why: str) -> None:
        self._end = self._end or why
        raise _Ended

    def _stop(self, store: StoreAssociation, entry: Entry) -> None:
        how = self._behaviour.stop
        if how == "inside":
            store.send_half(Payload.of(entry))
        elif how == "close":
            store.cut()
        elif how == "abort":
            store.abort()
        self._give_up("stop")

    def _finish(self) -> None:
        """Send the final answer, once, unless the behaviour keeps it."""
        behaviour = self._behaviour
        if self._final_sent:
            return
        self._final_sent = True
        if behaviour.final == "never":
            wait(self._association, None, self._owner.stopping)
            return
        if behaviour.final == "garbage":
            misbehave(self._association, "garbage", self._owner.stopping)
            return
        undone = self._total - self._completed - self._warnings - len(self._failed)
        failed = len(self._failed) + (undone if self._end in ("stop", "refused") else 0)
        if self._end == "cancel":
            status = _CANCELLED
        elif failed:
            status = _WARNING if self._completed + self._warnings else _NOTHING_DONE
        else:
            status = 0x0000
        self._answer(behaviour.final_status if behaviour.final_status is not None else status, failed)

    def _answer(self, status: int, failed: int | None = None) -> None:
        if is_over(self._association):
            return
        behaviour = self._behaviour
        response = C_MOVE()
        response.MessageID = self._request.MessageID
        response.MessageIDBeingRespondedTo = self._request.MessageID
        response.AffectedSOPClassUID = self._request.AffectedSOPClassUID
        response.Status = status
        with self._lock:
            failures = len(self._failed) if failed is None else failed
            completed = self._completed
            if status in (_PENDING, _CANCELLED):
                remaining = self._total - completed - self._warnings - failures
                response.NumberOfRemainingSuboperations = max(0, remaining)
            if status != _PENDING:
                completed = completed if behaviour.claim_completed is None else behaviour.claim_completed
                failures = failures if behaviour.claim_failed is None else behaviour.claim_failed
            response.NumberOfCompletedSuboperations = completed
            response.NumberOfFailedSuboperations = failures
            response.NumberOfWarningSuboperations = self._warnings
            if status != _PENDING and self._failed:
                data = Dataset()
                data.FailedSOPInstanceUIDList = self._failed
                encoded = encode(data, self._syntax.is_implicit_VR, self._syntax.is_little_endian)
                response.Identifier = BytesIO(encoded or b"")
            self._association.dimse.send_msg(response, self._context_id)
        if status != _PENDING:
            self._owner.note("final", status=status)
