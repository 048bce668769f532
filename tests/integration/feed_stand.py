"""The stand of the feed tests: a gateway process, simulated PACS, RIS and DMP, and ways to look inside.

`FeedStand` adds to `Stand` more RIS, more structures, sites tied to them, studies that cost little to
make, and what the tests ask again and again: is the queue empty, what do audit and notices say, what did
the DMP receive.
"""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pydicom
from twisted.internet import reactor

from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.dmp_registry import Entry
from drimbox.sim.dmp_service import Request
from drimbox.sim.listening import utc_now
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.ris import SimAct, SimMessage, SimOrder, SimReport, build_message
from drimbox.sim.stand import LOOPBACK, PacsAddress, Stand, _pair, _section, _text
from drimbox.sim.studies import GeneratedStudy, SimPatient, make_study
from tests.integration.waiting import until, wait

POOL = ("DBX1", "DBX2")
SECOND_POOL = ("DBX3", "DBX4")
SECOND_STRUCTURE = "1888888888"


class FeedStand(Stand):
    """`Stand` with `ris` (name to MSH-3), two structures, and `sites`: keys added to each `[[site]]`."""

    def __init__(
        self,
        folder: Path,
        pacses: Sequence[PacsAddress],
        *,
        ris: Mapping[str, str] | None = None,
        sites: Sequence[Mapping[str, str]] = (),
        extra: Mapping[str, Mapping[str, str]] | None = None,
        dicom_port: int | None = None,
        world: Stand | None = None,
    ) -> None:
        settings = {"dmp": {"timeout": "3", "connect_timeout": "2"}, **(extra or {})}
        super().__init__(folder, reactor, pacses, extra=settings, dicom_port=dicom_port, world=world)
        self._more_ris = dict(ris or {})
        self._site_keys = list(sites)
        self.requests: list[Request] = []
        #: Seconds the DMP lets a submission lie before it carries it out, even if the sender has gone.
        self.late = 0.0
        self._numbers = iter(range(1, 10**6))

    async def up(self) -> None:
        """Start everything, the gateway last."""
        await self.start()
        self.dmp.answer = self._answer(self.dmp.answer)  # type: ignore[method-assign]
        await self.start_gateway()

    def _answer(self, plain: Callable[[Any, Request], None]) -> Callable[[Any, Request], None]:
        def treat(web_request: Any, request: Request) -> None:
            if web_request._disconnected:
                self.dmp.service.handle(request, utc_now())
            else:
                plain(web_request, request)

        def answer(web_request: Any, request: Request) -> None:
            self.requests.append(request)
            if self.late and self.dmp.service.identify(request) == "TD2.1":
                clock: Any = reactor
                clock.callLater(self.late, treat, web_request, request)
            else:
                plain(web_request, request)

        return answer

    # -- configuration -----------------------------------------------------------------------------

    def _toml(self) -> str:
        lines: list[str] = []
        for name, application in self._more_ris.items():
            keys = {"name": _text(name), "sending_application": _text(application)}
            lines += _section("[[ris]]", keys)
        second = {
            "id": _text(SECOND_STRUCTURE),
            "name": _text("CLINIQUE Z"),
            "internal_id": _text("interne-z"),
            "authentication": _pair(
                self.pki.issue_org(SECOND_STRUCTURE, "auth", organisation="CLINIQUE Z")
            ),
            "signature": _pair(self.pki.issue_org(SECOND_STRUCTURE, "sign", organisation="CLINIQUE Z")),
        }
        return super()._toml() + "\n".join(lines + _section("[[structure]]", second)) + "\n"

    def _site(self, number: int, pacs: PacsAddress) -> list[str]:
        head, *rest = super()._site(number, pacs)
        keys = self._site_keys[number] if number < len(self._site_keys) else {}
        return [head, *(f"{key} = {value}" for key, value in keys.items()), *rest]

    # -- RIS ---------------------------------------------------------------------------------------

    async def report(
        self,
        *studies: GeneratedStudy | str,
        report: Mapping[str, Any] | None = None,
        **message: Any,
    ) -> int:
        """Send a report about these studies, check that it is accepted, return its number."""
        number = next(self._numbers)
        ack = await self.send(self.message(*studies, number=number, report=report, **message))
        assert ack.code == "AA", ack
        return number

    def message(
        self,
        *studies: GeneratedStudy | str,
        number: int,
        report: Mapping[str, Any] | None = None,
        **message: Any,
    ) -> bytes:
        """Build the message of `report`; `number` makes its identifiers."""
        uids = [study if isinstance(study, str) else study.study_uid for study in studies]
        content = SimReport(
            acts=tuple(SimAct(study_uid=uid, modalities=("CT",), description="Scanner") for uid in uids),
            document_id=f"2.999.7.{number}",
            set_id=f"2.999.7.{number}",
        )
        content = attrs.evolve(content, **(report or {}))
        return build_message(content, SimMessage(**{"control_id": f"M{number}", **message}))

    # -- DMP ---------------------------------------------------------------------------------------

    def kos(self, study: GeneratedStudy | str, status: str | None = "Approved") -> list[Entry]:
        """Return the KOS entries of a study that the DMP holds, of this status (None is any)."""
        uid = study if isinstance(study, str) else study.study_uid
        return [
            entry
            for entry in self.dmp.service.registry.entries.values()
            if entry.mime_type == "application/dicom"
            and (status is None or entry.status.endswith(f":{status}"))
            and kos_study(entry) == uid
        ]

    async def published_one(self, study: GeneratedStudy | str, *, seconds: float = 30.0) -> Entry:
        """Wait until the DMP holds a current KOS of the study and the gateway knows; return it."""
        await until(lambda: self.kos(study), seconds=seconds, what="KOS in the DMP")
        await self.idle(seconds=seconds)
        (entry,) = self.kos(study)
        return entry

    @contextmanager
    def dmp_misbehaves(self, behaviour: Behaviour, times: int | None = 1) -> Iterator[None]:
        """Let the DMP treat the next `times` suitable requests so (None: all, until the block ends)."""
        if times is None:
            self.dmp.script.default = behaviour
        else:
            self.dmp.script.push(behaviour, times)
        try:
            yield
        finally:
            self.dmp.script.reset()

    def exchanges(self, transaction: str = "TD2.1") -> list[Any]:
        """Return the exchanges of one transaction so far."""
        return [each for each in self.dmp.service.exchanges if each.transaction == transaction]

    # -- gateway -----------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Return the status of the gateway."""
        _, body = await self.admin("/status")
        found: dict[str, Any] = json.loads(body)
        return found

    async def waiting(self) -> int:
        """Count the rows not ended in all queues."""
        queues = (await self.status())["queues"].values()
        return sum(queue["waiting"] + queue["in_hand"] for queue in queues)

    async def idle(self, *, seconds: float = 30.0) -> None:
        """Wait until every queue is empty."""

        async def empty() -> bool:
            return await self.waiting() == 0

        await until(empty, seconds=seconds, what="empty queues")

    async def notices(self) -> dict[str, str]:
        """Return the texts of the open notices by code and order."""
        _, body = await self.admin("/notices")
        found = json.loads(body)
        listed = found["notices"] if isinstance(found, dict) else found
        return {f"{number} {notice['code']}": notice["text"] for number, notice in enumerate(listed)}

    async def notice_about(self, word: str, code: str) -> str:
        """Wait for an open notice with this code that names `word`; return its text."""

        async def look() -> str:
            found = await self.notices()
            return next((t for k, t in found.items() if k.endswith(code) and word in t), "")

        return str(await until(look, what=f"notice {code} about {word}"))

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read the store beside the gateway."""
        path = self.folder / "state" / "drimbox.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql, values).fetchall()

    def change(self, sql: str, *values: Any) -> int:
        """Change the store beside the gateway, as a failing disk might; return the last row number."""
        path = self.folder / "state" / "drimbox.db"
        with closing(sqlite3.connect(path, timeout=20)) as connection, connection:
            return int(connection.execute(sql, values).lastrowid or 0)

    def insert_message(self, raw: object) -> int:
        """Put a message into the inbox that no RIS sent; return its number."""
        return self.change(
            "INSERT INTO inbox (ris, peer, control_id, raw, received_at, due_at)"
            " SELECT 'ris', '127.0.0.1', 'X', ?, max(received_at), max(due_at) FROM inbox",
            raw,
        )

    def audits(self, study: str) -> list[dict[str, Any]]:
        """Return the audit events about a study, oldest first."""
        rows = self.query("SELECT payload FROM audit WHERE study_uid LIKE ? ORDER BY id", f"%{study}%")
        return [json.loads(row[0])["event"] for row in rows]


_study_of: dict[str, str] = {}


def kos_study(entry: Entry) -> str:
    """Return the StudyInstanceUID that a KOS refers to."""
    if entry.entry_uuid not in _study_of:
        (evidence,) = kos_dataset(entry).CurrentRequestedProcedureEvidenceSequence
        _study_of[entry.entry_uuid] = str(evidence.StudyInstanceUID)
    return _study_of[entry.entry_uuid]


def kos_dataset(entry: Entry) -> Any:
    """Read the KOS of an entry with pydicom."""
    return pydicom.dcmread(io.BytesIO(entry.document))


def kos_instances(entry: Entry) -> dict[str, set[str]]:
    """Return the instances a KOS lists, by series."""
    (evidence,) = kos_dataset(entry).CurrentRequestedProcedureEvidenceSequence
    return {
        str(series.SeriesInstanceUID): {
            str(one.ReferencedSOPInstanceUID) for one in series.ReferencedSOPSequence
        }
        for series in evidence.ReferencedSeriesSequence
    }


def held_instances(study: GeneratedStudy) -> dict[str, set[str]]:
    """Return the instances of a generated study, by series."""
    return {
        series.series_uid: {one.sop_instance_uid for one in series.instances} for series in study.series
    }


class Studies:
    """Makes small studies that no test shares."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def new(self, *pacses: SimulatedPacs, instances: int = 2, **options: Any) -> GeneratedStudy:
        """Make a study and load it into these PACS."""
        self._count += 1
        options.setdefault("seed", self._count)
        options.setdefault("patient", SimPatient(id="P000123"))
        study = make_study(
            self._folder / f"{self._count:04}", instances=instances, rows=8, columns=8, **options
        )
        for pacs in pacses:
            pacs.load(study)
        return study


@attrs.define
class OnePacs:
    """A running gateway with one PACS, and studies to put there."""

    stand: FeedStand
    pacs: SimulatedPacs
    studies: Studies


@contextmanager
def one_pacs(folder: Path, **options: Any) -> Iterator[OnePacs]:
    """Start a gateway beside one PACS; `options` are those of `FeedStand`."""
    pacs = SimulatedPacs("PACS-A")
    pacs.start()
    stand = FeedStand(folder, [PacsAddress("PACS-A", pacs.port, POOL)], **options)
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    try:
        yield OnePacs(stand, pacs, Studies(folder / "studies"))
    finally:
        wait(stand.stop())
        pacs.stop()


def after(transaction: str, kind: Kind, **options: Any) -> Behaviour:
    """Return a misbehaviour aimed at one transaction."""
    return Behaviour(kind, transaction=transaction, **options)


__all__ = [
    "POOL",
    "SECOND_POOL",
    "SECOND_STRUCTURE",
    "FeedStand",
    "OnePacs",
    "SimOrder",
    "Studies",
    "after",
    "held_instances",
    "kos_dataset",
    "kos_instances",
    "kos_study",
    "one_pacs",
]
