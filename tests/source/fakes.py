"""What stands behind the doors of the feed and of the publication in their unit tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import ensureDeferred

from drimbox.config import (
    Appliance,
    Certificate,
    Config,
    DmpSettings,
    FeedSettings,
    Hl7Settings,
    Pacs,
    PscSettings,
    Ris,
    Site,
    Structure,
    TrustSettings,
)
from drimbox.dicom.archive import PacsArchive
from drimbox.errors import PacsUnavailable
from drimbox.model import Instance, KosState, Report, Series, Study
from drimbox.ports import (
    Accepted,
    ArchivedKos,
    AuditEvent,
    Count,
    InboxMessage,
    Outcome,
    RegistryEntry,
    Removal,
    ReportSaid,
    Speaker,
    Submission,
    Voice,
)
from drimbox.sim.ris import SimMessage, SimReport, build_change, build_message
from drimbox.source.publication import APPROVED

T = TypeVar("T")
HERE = Path("/nonexistent")
PAIR = Certificate(HERE, HERE)
START = datetime(2026, 1, 12, 10, 0, tzinfo=UTC)
STUDY = "2.999.10.20.30"
CT = "1.2.840.10008.5.1.4.1.1.2"


class Clock:
    def __init__(self) -> None:
        self.instant = START

    def now(self) -> datetime:
        return self.instant

    def advance(self, seconds: float) -> None:
        self.instant += timedelta(seconds=seconds)


def structure(identifier: str = "1999999999", internal_id: str = "interne") -> Structure:
    return Structure(identifier, "CABINET Y", PAIR, PAIR, internal_id)


def site(number: int = 1, **changes: Any) -> Site:
    pacs = Pacs(f"PACS{number}", f"PACS{number}", "127.0.0.1", 104, ("DBX",))
    fqdn = f"db{number}.349.mesimagesmedicales.fr"
    return attrs.evolve(Site(f"site{number}", fqdn, f"vi{number}.349.example", pacs, PAIR), **changes)


def config(
    *sites: Site, structures: Sequence[Structure] | None = None, missing_destdmp: str = "error"
) -> Config:
    return Config(
        drimbox=Appliance(HERE, "349"),
        sites=sites or (site(),),
        ris=(Ris("RIS"),),
        structures=(structure(),) if structures is None else tuple(structures),
        trust=TrustSettings(HERE, HERE, HERE),
        dmp=DmpSettings("https://dmp.test", HERE, retry_first=10.0, retry_max=160.0),
        psc=PscSettings("https://psc.test", "id", HERE),
        hl7=Hl7Settings(missing_destdmp=missing_destdmp),
        feed=FeedSettings(retry_first=10.0, retry_max=160.0),
    )


async def at_once(work: Callable[[], T]) -> T:
    return work()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that nothing outside keeps waiting."""
    results: list[T] = []
    failures: list[Any] = []
    ensureDeferred(work).addCallbacks(results.append, failures.append)
    if failures:
        failures[0].raiseException()
    assert results, "it waits for something"
    return results[0]


class Trail:
    def __init__(self, log: list[str] | None = None) -> None:
        self.events: list[AuditEvent] = []
        self.log = [] if log is None else log

    async def record(self, event: AuditEvent) -> None:
        self.events.append(event)
        self.log.append("audit")

    def shown(self) -> list[tuple[str, str]]:
        """EventTypeCode and E-code (or empty) of each event."""
        return [(event.event_type[0], event.outcome_description[:4].strip()) for event in self.events]


class Notices:
    def __init__(self, log: list[str] | None = None) -> None:
        self.open: dict[str, tuple[str, str]] = {}
        self.posted: list[str] = []
        self.resolved: list[str] = []
        self.log = [] if log is None else log

    async def post(self, *, key: str, code: str, text: str) -> None:
        self.open[key] = (code, text)
        self.posted.append(key)
        self.log.append("notice")

    async def resolve(self, key: str) -> bool:
        self.resolved.append(key)
        return self.open.pop(key, None) is not None


def stored(raw: bytes | None = None, number: int = 1, **message: Any) -> InboxMessage:
    return InboxMessage(number, "RIS", "192.0.2.7", raw or hl7(**message), START, 0)


def hl7(report: SimReport | None = None, **message: Any) -> bytes:
    return build_message(report or SimReport(), SimMessage(**message))


def omi(*studies: str) -> bytes:
    return build_change(studies)


def study(uid: str = STUDY, instances: int = 2) -> Study:
    images = tuple(Instance(f"{uid}.1.{number}", CT, number) for number in range(1, instances + 1))
    return Study(uid, (Series(f"{uid}.1", "CT", images, 1, "Axial"),), "20260110", "140000", "TDM")


class Messages:
    def __init__(self, *messages: InboxMessage) -> None:
        self.rows = {message.id: message for message in messages}
        self.ended: list[tuple[Any, ...]] = []
        self.said: ReportSaid | None = None
        #: What the statistics were told of each message.
        self.counts: list[Count | None] = []

    async def message(self, message_id: int) -> InboxMessage:
        return self.rows[message_id]

    async def processed(
        self,
        message_id: int,
        *,
        result: str,
        said: ReportSaid | None = None,
        studies: Collection[str] = (),
        count: Count | None = None,
    ) -> None:
        self.counts.append(count)
        self.ended.append((message_id, result, *(said.studies if said is not None else studies)))
        self.said = said

    async def failed(
        self, message_id: int, code: str, detail: str, *, counts: Sequence[Count] = ()
    ) -> None:
        self.counts.extend(counts)
        self.ended.append((message_id, code, detail))


@attrs.define
class Jobs:
    ended: list[tuple[Any, ...]] = attrs.field(factory=list)
    retried: list[tuple[int, datetime, str]] = attrs.field(factory=list)
    queued: list[dict[str, Any]] = attrs.field(factory=list)
    #: KOS of the study that a removal finds.
    held: int = 1
    make: Callable[[Submission], Removal] | None = None
    #: Digest given to a KOS that had none of ours.
    adopted: str | None = None
    counts: list[Count] = attrs.field(factory=list)

    async def finish(
        self, job_id: int, result: str, detail: str = "", *, count: Count | None = None
    ) -> None:
        self.counts += [count] if count is not None else []
        self.ended.append((job_id, result, detail))

    async def retry(self, job_id: int, at: datetime, error: str) -> None:
        self.retried.append((job_id, at, error))

    async def unchanged(
        self, job_id: int, kos_id: int, report_id: str, *, fingerprint: str | None = None
    ) -> None:
        self.ended.append((job_id, "unchanged", kos_id, report_id))
        self.adopted = fingerprint

    async def queue_removal(
        self,
        job_id: int,
        make: Callable[[Submission], Removal],
        *,
        sites: Collection[str] | None = None,
    ) -> int:
        self.ended.append((job_id, "removal", sites))
        self.make = make
        return self.held

    async def queue_publication(self, job_id: int, **values: Any) -> int:
        self.ended.append((job_id, "queued"))
        self.queued.append(values)
        return 1


class Reports:
    """Who speaks for every study."""

    def __init__(self, speaker: Speaker | Voice = Voice.UNKNOWN) -> None:
        self.says = speaker
        self.stands: dict[int, str] = {}

    async def speaker(self, study_uid: str) -> Speaker | Voice:
        return self.says

    async def standing(self, study_uid: str) -> dict[int, str]:
        return self.stands


class Titles:
    """What is known of key objects (a `rejections.Titles`)."""

    def __init__(self, titles: Mapping[str, str] | None = None) -> None:
        self.titles = dict(titles or {})

    async def known(self, sop_instance_uids: Collection[str]) -> dict[str, str]:
        return {uid: self.titles[uid] for uid in sop_instance_uids if uid in self.titles}

    async def learn(self, titles: Mapping[str, str]) -> None:
        self.titles = {**titles, **self.titles}


class Archive:
    def __init__(self, *kos: ArchivedKos) -> None:
        self.kos = list(kos)
        self.submissions: dict[int, Submission] = {}

    async def submission(self, kos_id: int) -> Submission | None:
        return self.submissions.get(kos_id)

    async def latest(self, study_uid: str, *, with_data: bool = True) -> ArchivedKos | None:
        return next((one for one in reversed(self.kos) if one.study_uid == study_uid), None)

    async def get(self, kos_id: int) -> ArchivedKos:
        return next(one for one in self.kos if one.id == kos_id)

    async def published(self, site: str, study_uid: str, *, with_data: bool = True) -> ArchivedKos | None:
        found = [
            one
            for one in self.kos
            if (one.site, one.study_uid, one.state) == (site, study_uid, KosState.PUBLISHED)
        ]
        return found[-1] if found else None

    async def doubtful(self, study_uid: str) -> list[ArchivedKos]:
        return [one for one in self.kos if (one.study_uid, one.state) == (study_uid, KosState.REFUSED)]


def archived(**changes: Any) -> ArchivedKos:
    return attrs.evolve(
        ArchivedKos(
            id=7,
            site="site1",
            study_uid=STUDY,
            sop_instance_uid="2.25.70",
            state=KosState.PUBLISHED,
            data=b"",
            metadata=b"",
            fingerprint="f" * 64,
            structure_id="1999999999",
            patient_ins="284070100499094",
            patient_ins_oid="1.2.250.1.213.1.4.10",
            patient_id="P000123",
            report_ids=("2.999.7.0",),
            entry_uuid="urn:uuid:70",
            created_at=START,
        ),
        **changes,
    )


class Pacses:
    """Answers by PACS name: a study, None, or an exception to raise."""

    def __init__(self, **answers: Study | Exception | None) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def find_study(self, pacs: Pacs, study_uid: str) -> Study | None:
        self.asked.append(pacs.name)
        answer = self.answers.get(pacs.name)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Immobile:
    """Moves nothing."""

    def retrieval(self, pacs: Pacs, receiver: Any) -> Any:
        return self

    async def run(self, *which: str, wait: float) -> Any:
        raise PacsUnavailable("rien ne part")


def archives(settings: Config, pacses: Pacses) -> dict[str, PacsArchive]:
    """The archive of each site, all of which ask `pacses` and send nothing."""
    mover: Any = Immobile()
    return {each.name: PacsArchive(each.pacs, pacses, mover) for each in settings.sites if each.pacs}


class Dmp:
    """A `ports.Record` that follows a script: each call takes the next answer of its kind.

    An answer is an outcome, an entry, None, or an exception; the last one stays.
    """

    def __init__(
        self,
        *,
        publish: Sequence[Outcome | Exception] = (Accepted(),),
        entries: Sequence[RegistryEntry | Exception | None] = (None,),
        exists: Sequence[Outcome | Exception] = (Accepted(),),
        metadata: bytes | Exception = b"<metadata/>",
        log: list[str] | None = None,
    ) -> None:
        self.script: dict[str, list[Any]] = {
            "publish": list(publish),
            "find": list(entries),
            "exists": list(exists),
        }
        self.made = metadata
        self.log = [] if log is None else log
        self.replaced: list[str | None] = []
        self.asked: list[str] = []

    def metadata(self, structure: Structure, submission: Submission) -> bytes:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made

    async def patient_exists(self, structure: Structure, report: Report) -> Outcome:
        return self._next("exists")  # type: ignore[no-any-return]

    async def publish(self, structure: Structure, submission: Submission, replaces: str | None) -> Outcome:
        self.replaced.append(replaces)
        return self._next("publish")  # type: ignore[no-any-return]

    async def find_entry(
        self, structure: Structure, report: Report, unique_id: str
    ) -> RegistryEntry | None:
        self.asked.append(unique_id)
        return self._next("find")  # type: ignore[no-any-return]

    def _next(self, kind: str) -> Any:
        self.log.append(kind)
        answers = self.script[kind]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def entry_of(submission: Submission, **changes: Any) -> RegistryEntry:
    digest = hashlib.sha1(submission.kos).hexdigest()
    entry = RegistryEntry("urn:uuid:9", submission.sop_instance_uid, digest, len(submission.kos), APPROVED)
    return attrs.evolve(entry, **changes)
