"""Making the record match the PACS for one study: what is queued, what waits, what ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock as ReactorClock
from twisted.logger import formatEvent, globalLogPublisher

from drimbox.config import Native as NativeSettings
from drimbox.config import Site, Structure
from drimbox.errors import PacsCommunicationError, PublicationError
from drimbox.kos.compare import fingerprint
from drimbox.kos.manifest import retrieve_base
from drimbox.kos.reading import KOS_SOP_CLASS, KeyImage, read_manifest
from drimbox.model import Instance, KosState, Series, Study
from drimbox.ports import ArchivedKos, FeedJob, Purpose, Speaker, Submission, Voice
from drimbox.sim.ris import SimAct, SimOrder, SimReport
from drimbox.source.feed_doors import Doors
from drimbox.source.interpretation import interpret
from drimbox.source.keynotes import Marks
from drimbox.source.matching import Matching
from drimbox.source.rejections import RejectionNotes
from tests.source.fakes import (
    STUDY,
    Archive,
    Clock,
    Dmp,
    Jobs,
    Messages,
    Notices,
    Pacses,
    Reports,
    Titles,
    Trail,
    archived,
    archives,
    at_once,
    config,
    hl7,
    omi,
    run,
    site,
    stored,
    structure,
    study,
)
from tests.store.samples import submission as sample

SILENT = PacsCommunicationError("pas de réponse")


async def nothing(study_uid: str) -> None:
    """No cache here."""


class Stage:
    def __init__(
        self,
        pacses: Pacses | None = None,
        *kos: ArchivedKos,
        sites: tuple[Site, ...] = (),
        structures: list[Structure] | None = None,
        raw: bytes | None = None,
        record: Dmp | None = None,
        speaker: Speaker | Voice = Voice.UNKNOWN,
        messages: Messages | None = None,
        notes: Any = None,
        titles: Mapping[str, str] | None = None,
        doubt: str = "",
    ) -> None:
        self.doubted: list[str] = []

        async def doubts(site: Site) -> str:
            self.doubted.append(site.name)
            return doubt

        self.raw = raw or hl7()
        self.settings = config(*sites, structures=structures)
        self.pacses = pacses or Pacses(PACS1=study())
        self.jobs, self.trail, self.notices, self.clock = Jobs(), Trail(), Notices(), Clock()
        self.archive, self.record = Archive(*kos), record or Dmp()
        self.reports, self.titles = Reports(speaker), Titles(titles)
        doors = Doors(
            messages=messages or Messages(stored(self.raw)),
            jobs=self.jobs,
            reports=self.reports,
            archive=self.archive,
            archives=archives(self.settings, self.pacses),
            record=self.record,
            audit=self.trail,
            notices=self.notices,
            clock=self.clock,
            in_thread=at_once,
            key_notes=notes,
            rejections=RejectionNotes(ReactorClock(), at_once, self.titles),
            forget=nothing,
            doubt=doubts,
        )
        self.matching = Matching(self.settings, doors)

    def match(
        self,
        job: int = 5,
        *,
        study_uid: str = STUDY,
        ris: str = "RIS",
        attempts: int = 0,
        purpose: Purpose = Purpose.MATCH,
    ) -> None:
        run(self.matching.match(FeedJob(job, 1, study_uid, ris, attempts, purpose)))

    def print_(self, **changes: Any) -> str:
        """Fingerprint of what the stage would publish."""
        read = interpret(self.raw)
        assert read.message is not None
        assert read.report is not None
        here = self.settings.sites[0]
        facts: dict[str, Any] = {
            "report": read.report,
            "study": study(),
            "site": here,
            "structure_id": "1999999999",
            "visibility": read.message.visibility,
            "retrieve_base": retrieve_base(here, self.settings.wado),
        }
        return fingerprint(**{**facts, **changes})


@pytest.mark.requirement("DB.SO.12", "DB.SO.18", "DB.SO.105", "DB.SO.22")
def test_a_new_study_is_queued_whole() -> None:
    stage = Stage()
    stage.match()
    assert stage.jobs.ended == [(5, "queued")]
    (queued,) = stage.jobs.queued
    submission: Submission = queued["submission"]
    assert submission.report.patient.ins == "284070100499094"
    assert submission.study == study()
    assert submission.structure_id == "1999999999"
    assert len({submission.sop_instance_uid, submission.submission_uid, submission.signature_uid}) == 3
    assert queued["site"] == "site1"
    assert queued["metadata"] == b"<metadata/>"
    assert queued["fingerprint"] == stage.print_()
    assert stage.notices.posted == []


@pytest.mark.requirement("DB.SO.12", "DB.SO.13")
@pytest.mark.parametrize("state", [KosState.PENDING, KosState.PUBLISHED])
def test_the_same_content_again_only_adds_the_report(state: KosState) -> None:
    stage = Stage()
    stage.archive.kos.append(archived(fingerprint=stage.print_(), state=state))
    stage.match()
    assert stage.jobs.ended == [(5, "unchanged", 7, "2.999.7.1")]
    assert stage.jobs.queued == []


@pytest.mark.requirement("DB.SO.12", "DB.SO.13", "DB.SO.105")
@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(hl7(SimReport(orders=(SimOrder("ACC-NEW"),))), id="accession number"),
        pytest.param(hl7(SimReport(birth_place="75056")), id="patient trait"),
        pytest.param(hl7(flags={"MASQUE_PS": "Y"}), id="visibility"),
        pytest.param(hl7(SimReport(acts=(SimAct(modalities=("MR", "CT")),))), id="modality"),
    ],
)
def test_a_changed_report_is_queued(raw: bytes) -> None:
    stage = Stage(raw=raw)
    stage.archive.kos.append(archived(fingerprint=Stage().print_()))
    stage.match()
    assert stage.jobs.ended == [(5, "queued")]


class Native:
    """A native archive that holds the study."""

    name = "ARCHIVE"
    patience = 5.0

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def find_study(self, study_uid: str) -> Any:
        self.asked.append(study_uid)
        return study()


@pytest.mark.requirement("DB.SO.188", "DB.SO.165")
@pytest.mark.parametrize("ris", ["RIS", "RIS-CARDIO"])
def test_several_ris_lead_to_one_native_archive(ris: str) -> None:
    native = NativeSettings("ARCHIVE", "orthanc", "http://localhost:8042")
    here = site(1, pacs=None, native=native, ris=("RIS", "RIS-CARDIO"))
    stage = Stage(sites=(here, site(2, ris=("RIS-LABO",))))
    archive: Any = Native()
    doors = attrs.evolve(stage.matching._doors, archives={"site1": archive})
    stage.matching = Matching(stage.settings, doors)
    stage.match(ris=ris)
    assert stage.jobs.ended == [(5, "queued")]
    assert archive.asked == [STUDY]
    assert stage.pacses.asked == []


@pytest.mark.requirement("DB.SO.13")
@pytest.mark.parametrize("instances", [1, 3])
def test_other_images_are_queued(instances: int) -> None:
    stage = Stage(Pacses(PACS1=study(instances=instances)))
    stage.archive.kos.append(archived(fingerprint=stage.print_()))
    stage.match()
    assert stage.jobs.ended == [(5, "queued")]


@pytest.mark.requirement("DB.SO.14", "DB.SO.21", "DB.SO.45")
def test_a_silent_pacs_keeps_the_request_for_ever_and_does_not_flood() -> None:
    stage = Stage(Pacses(PACS1=SILENT))
    for attempt in range(12):
        stage.match(attempts=attempt)
        (_, due, reason) = stage.jobs.retried[-1]
        wait = (due - stage.clock.now()).total_seconds()
        assert min(10 * 2**attempt, 160) / 2 <= wait <= min(10 * 2**attempt, 160)
        assert "PACS" in reason
        stage.clock.advance(wait)
    assert stage.jobs.ended == []
    assert len(stage.pacses.asked) == 12
    # One notice, and the audit at the first, second, fourth and eighth failure.
    assert list(stage.notices.open) == ["pacs-PACS1"]
    assert stage.trail.shown() == [("ITI-41", "E003")] * 4
    stage.pacses.answers["PACS1"] = study()
    stage.match()
    assert stage.jobs.ended == [(5, "queued")]
    assert stage.notices.open == {}


@pytest.mark.requirement("DB.SO.14")
def test_while_the_pacs_is_known_silent_other_studies_wait_without_asking() -> None:
    stage = Stage(Pacses(PACS1=SILENT))
    stage.match(1)
    for job in range(2, 50):
        stage.match(job)
    assert stage.pacses.asked == ["PACS1"]
    assert {due for _, due, _ in stage.jobs.retried[1:]} == {stage.matching._pacses["PACS1"].shut()}
    assert len(stage.trail.events) == 1


@pytest.mark.requirement("DB.SO.21", "DB.SO.14")
def test_a_study_on_which_the_pacs_chokes_is_told_while_others_pass() -> None:
    stage = Stage(Pacses(PACS1=SILENT))
    for _ in range(5):
        stage.match(1)
        stage.clock.advance(200)
        stage.pacses.answers["PACS1"] = study()
        stage.match(2)
        stage.pacses.answers["PACS1"] = SILENT
    assert stage.notices.open == {f"E003-{STUDY}": ("E003", f"Examen {STUDY} : {SILENT}")}
    stage.pacses.answers["PACS1"] = study()
    stage.match(1)
    assert stage.notices.open == {}


@pytest.mark.requirement("DB.SO.15", "DB.SO.21", "DB.SO.45")
@pytest.mark.parametrize("answer", [None, attrs.evolve(study(), series=())])
def test_a_study_nobody_holds_ends_with_e004(answer: Any) -> None:
    stage = Stage(Pacses(PACS1=answer, PACS2=answer), sites=(site(1), site(2)))
    stage.match()
    assert stage.jobs.ended == [(5, "E004", "PACS interrogés : PACS1, PACS2")]
    assert stage.trail.shown() == [("ITI-41", "E004")]
    assert stage.trail.events[0].participants[0].user_id == "1999999999/interne"
    assert stage.notices.open[f"E004-{STUDY}"][0] == "E004"


@pytest.mark.requirement("DB.SO.140")
def test_pacs_are_asked_in_configured_order_until_one_has_the_study() -> None:
    pacses = Pacses(PACS1=None, PACS2=study(), PACS3=study())
    stage = Stage(pacses, sites=(site(1), site(2), site(3)))
    stage.match()
    assert pacses.asked == ["PACS1", "PACS2"]
    assert stage.jobs.queued[0]["site"] == "site2"


@pytest.mark.requirement("DB.SO.140", "DB.SO.14", "DB.SO.21")
def test_a_silent_pacs_does_not_hide_the_one_that_has_the_study() -> None:
    stage = Stage(Pacses(PACS1=SILENT, PACS2=study()), sites=(site(1), site(2)))
    stage.match()
    assert stage.jobs.queued[0]["site"] == "site2"
    assert list(stage.notices.open) == ["pacs-PACS1"]


@pytest.mark.requirement("DB.SO.140", "DB.SO.14")
def test_absent_here_and_silent_there_is_not_absent() -> None:
    stage = Stage(Pacses(PACS1=None, PACS2=SILENT), sites=(site(1), site(2)))
    stage.match()
    assert stage.jobs.ended == []
    assert len(stage.jobs.retried) == 1


@pytest.mark.requirement("DB.SO.140", "DB.SO.14")
def test_with_several_silent_pacs_the_first_that_may_be_asked_again_decides() -> None:
    stage = Stage(Pacses(PACS1=SILENT, PACS2=SILENT), sites=(site(1), site(2)))
    outages = stage.matching._pacses
    for _ in range(6):
        run(outages["PACS1"].failed(99, "muet"))
        stage.clock.advance(160)
    run(outages["PACS1"].failed(99, "muet"))
    stage.match()
    assert stage.pacses.asked == ["PACS2"]
    assert (stage.jobs.retried[0][1] - stage.clock.now()).total_seconds() <= 10


@pytest.mark.requirement("DB.SO.13", "DB.SO.140")
def test_the_same_study_in_another_pacs_has_changed() -> None:
    stage = Stage(Pacses(PACS1=None, PACS2=study()), sites=(site(1), site(2)))
    stage.archive.kos.append(archived(fingerprint=stage.print_()))
    stage.match()
    assert stage.jobs.queued[0]["site"] == "site2"


@pytest.mark.requirement("DB.SO.140")
def test_only_the_pacs_of_the_ris_and_of_the_structure_are_asked() -> None:
    sites = (site(1, ris=("AUTRE",)), site(2, structures=("1888888888",)), site(3, ris=("RIS",)))
    pacses = Pacses(PACS1=study(), PACS2=study(), PACS3=None)
    stage = Stage(pacses, sites=sites)
    stage.match()
    assert pacses.asked == ["PACS3"]
    nowhere = Stage(sites=sites[:2])
    nowhere.match()
    assert nowhere.jobs.ended[0][1] == "E008"


@pytest.mark.requirement("DB.SO.13", "DB.SO.140")
def test_the_pacs_of_the_published_kos_is_asked_first_and_waited_for() -> None:
    pacses = Pacses(PACS1=study(), PACS2=SILENT)
    stage = Stage(pacses, archived(site="site2"), sites=(site(1), site(2)))
    stage.match()
    assert pacses.asked == ["PACS2"]
    assert stage.jobs.ended == []
    # Once it says that the study has gone, the other one is asked.
    stage.clock.advance(60)
    pacses.answers["PACS2"] = None
    stage.match()
    assert stage.jobs.queued[0]["site"] == "site1"


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
def test_an_unknown_structure_ends_with_e007() -> None:
    stage = Stage(raw=hl7(SimReport(structure_id="1777777777")))
    stage.match()
    assert stage.jobs.ended[0][:2] == (5, "E007")
    assert "1777777777" in stage.jobs.ended[0][2]
    assert stage.pacses.asked == []
    assert stage.trail.shown() == [("ITI-41", "E007")]


@pytest.mark.parametrize(
    ("named", "known"), [("999999999", "1999999999"), ("1999999999", "999999999")], ids=["bare", "prefixed"]
)
def test_a_finess_is_known_with_and_without_its_prefix(named: str, known: str) -> None:
    stage = Stage(raw=hl7(SimReport(structure_id=named)), structures=[structure(known)])
    stage.match()
    assert stage.jobs.queued[0]["submission"].structure_id == known


@pytest.mark.requirement("DB.SO.13")
def test_the_structure_that_published_goes_on_publishing() -> None:
    both = [structure(), structure("1888888888")]
    stage = Stage(None, archived(structure_id="1888888888"), structures=both)
    stage.match()
    assert stage.jobs.queued[0]["submission"].structure_id == "1888888888"
    gone = Stage(None, archived(structure_id="1888888888"))
    gone.match()
    assert gone.jobs.queued[0]["submission"].structure_id == "1999999999"


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
def test_a_certificate_out_of_order_keeps_the_study_waiting() -> None:
    stage = Stage(record=Dmp(metadata=PublicationError("clé de signature inutilisable")))
    for _ in range(3):
        stage.match()
        stage.clock.advance(200)
    assert stage.jobs.ended == []
    assert len(stage.jobs.retried) == 3
    assert stage.notices.open["certificat-1999999999"][0] == "E007"
    assert stage.trail.shown() == [("ITI-41", "E007")] * 2
    stage.record.made = b"<metadata/>"
    stage.match()
    assert stage.jobs.ended == [(5, "queued")]
    assert stage.notices.open == {}


@pytest.mark.requirement("DB.SO.13")
def test_a_kos_that_the_dmp_refused_meanwhile_is_not_taken_for_the_current_one() -> None:
    """The archive is read again after the PACS has answered."""
    stage = Stage()
    known = archived(fingerprint=stage.print_(), state=KosState.PENDING)
    stage.archive.kos.append(known)
    answer = stage.pacses.find_study

    async def slow(*arguments: Any) -> Any:
        stage.archive.kos.clear()
        return await answer(*arguments)

    stage.pacses.find_study = slow  # type: ignore[method-assign]
    stage.match()
    assert stage.jobs.ended == [(5, "queued")]


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
def test_a_message_that_no_longer_feeds_ends_its_job() -> None:
    stage = Stage(raw=hl7(flags={"DESTDMP": "N"}))
    stage.match()
    assert stage.jobs.ended[0][:2] == (5, "E005")
    broken = Stage(raw=b"MSH")
    broken.match()
    assert broken.jobs.ended[0][:2] == (5, "E005")
    for one in (stage, broken):
        assert one.trail.shown() == [("ITI-41", "E005")]
        assert [code for code, _ in one.notices.open.values()] == ["E005"]


@pytest.mark.threat("patient data in logs and notices")
def test_nothing_told_names_the_patient() -> None:
    for answer in (None, SILENT):
        stage = Stage(Pacses(PACS1=answer))
        stage.match()
        for _, text in stage.notices.open.values():
            for secret in ("284070100499094", "P000123", "EXEMPLE", "CLAIRE"):
                assert secret not in text


@pytest.mark.requirement("DB.SO.18")
@pytest.mark.threat("patient data in logs and notices")
def test_an_accession_number_too_long_for_dicom_is_published_and_logged_without_its_value() -> None:
    number = "ACC-" + "7" * 30
    stage = Stage(raw=hl7(SimReport(orders=(SimOrder(number),))))
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        stage.match()
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert stage.jobs.ended == [(5, "queued")]
    submission: Submission = stage.jobs.queued[0]["submission"]
    assert number.encode() in submission.kos
    told = [formatEvent(event) for event in seen]
    assert [text for text in told if "numéro d'accession" in text and STUDY in text]
    assert not [text for text in told if number in text]


# -- who speaks for the study, and nobody ------------------------------------------------------------


@pytest.mark.requirement("DB.SO.97")
def test_the_report_that_speaks_now_decides_whatever_the_job_s_own_said() -> None:
    own = stored(hl7(SimReport(document_id="2.999.7.1")), 1)
    other = stored(hl7(SimReport(document_id="2.999.7.2"), flags={"MASQUE_PS": "Y"}), 2)
    pacses = Pacses(PACS1=None, PACS2=study())
    sites = (site(1, ris=("RIS",)), site(2, ris=("RIS-B",)))
    stage = Stage(pacses, sites=sites, speaker=Speaker(2, "RIS-B"), messages=Messages(own, other))
    stage.match()
    # Its PACS, its document, its visibility.
    assert pacses.asked == ["PACS2"]
    submission = stage.jobs.queued[0]["submission"]
    assert submission.report.document_id == "2.999.7.2"
    assert submission.visibility.masked_to_professionals


@pytest.mark.requirement("DB.SO.97")
def test_when_nobody_speaks_for_a_study_its_manifests_are_removed_without_asking_the_pacs() -> None:
    pacses = Pacses(PACS1=SILENT)
    stage = Stage(pacses, archived(), speaker=Voice.NONE_LEFT)
    stage.match()
    assert pacses.asked == []
    assert stage.jobs.ended == [(5, "removal", None)]
    assert stage.trail.events == []
    made = sample("2.25.500", STUDY)
    assert stage.jobs.make is not None
    removal = stage.jobs.make(made)
    assert (removal.sop_instance_uid, removal.structure_id) == ("2.25.500", made.structure_id)
    assert removal.report == made.report
    assert removal.submission_uid != made.submission_uid
    assert removal.submission_time == stage.clock.now()


@pytest.mark.requirement("DB.SO.25", "DB.SO.190", "DB.SO.26")
def test_a_published_study_that_its_pacs_has_no_more_is_removed() -> None:
    stage = Stage(Pacses(PACS1=None), archived())
    stage.match()
    assert stage.jobs.ended == [(5, "removal", {"site1"})]
    assert stage.notices.posted == []


@pytest.mark.requirement("DB.SO.199")
def test_a_published_study_of_which_everything_stays_inside_is_removed() -> None:
    stage = Stage(Pacses(PACS1=study()), archived(), sites=(site(1, excluded_uid_roots=(STUDY,)),))
    stage.match()
    assert stage.jobs.ended == [(5, "removal", {"site1"})]


@pytest.mark.requirement("DB.SO.190", "DB.SO.28")
def test_a_silent_pacs_removes_nothing() -> None:
    stage = Stage(Pacses(PACS1=SILENT), archived())
    stage.match()
    assert stage.jobs.ended == []
    assert len(stage.jobs.retried) == 1


@pytest.mark.requirement("DB.SO.190")
def test_a_study_published_from_a_pacs_that_was_not_asked_is_left_alone() -> None:
    stage = Stage(Pacses(PACS1=None), archived(site="site-d-avant"))
    stage.match()
    assert stage.jobs.ended[0][1] == "E004"


@pytest.mark.requirement("DB.SO.133")
def test_a_change_of_a_study_that_no_report_cites_ends_quietly() -> None:
    stage = Stage(raw=omi(STUDY))
    stage.match()
    assert stage.jobs.ended == [(5, "nothing", "")]
    assert stage.notices.posted == []


FORMER = "184070100499094"


@pytest.mark.requirement("DB.SO.13", "DB.SO.97")
@pytest.mark.threat("a KOS in the record of another patient")
def test_a_report_corrected_to_another_patient_takes_its_kos_along() -> None:
    stage = Stage(None, archived(patient_ins=FORMER))
    stage.reports.stands = {1: "2.999.7.1"}
    stage.match()
    (queued,) = stage.jobs.queued
    made = sample("2.25.500", STUDY)
    assert queued["take_back"](made).sop_instance_uid == "2.25.500"
    assert queued["take_back"](made).report == made.report


@pytest.mark.requirement("DB.SO.16", "DB.SO.21")
@pytest.mark.threat("a KOS in the record of another patient")
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(hl7(SimReport(ins=FORMER)), id="read"),
        pytest.param(b"MSH", id="not readable any more"),
    ],
)
def test_a_study_is_not_taken_from_a_patient_whose_report_still_stands(other: bytes) -> None:
    messages = Messages(stored(), stored(other, 2))
    stage = Stage(None, archived(patient_ins=FORMER, report_ids=("2.999.7.0",)), messages=messages)
    stage.reports.stands = {2: "2.999.7.0", 1: "2.999.7.1"}
    stage.match()
    assert stage.jobs.queued == []
    assert stage.jobs.ended[0][1] == "E001"
    assert FORMER not in stage.notices.open[f"E001-{STUDY}"][1]


# -- key images --------------------------------------------------------------------------------------


class Notes:
    """What the notes of a study mark, try by try; the last answer stays."""

    def __init__(self, *answers: Marks) -> None:
        self.answers = list(answers)

    async def marks(self, archive: Any, study: Study) -> Marks:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


MARKED = Marks({f"{STUDY}.1.2": (KeyImage("2.25.90", "2.25.91", "Nodule"),)})


@pytest.mark.requirement("DB.SO.194")
def test_key_images_are_in_the_manifest_and_count_as_a_change() -> None:
    plain = Stage()
    plain.match()
    before = archived(fingerprint=plain.jobs.queued[0]["fingerprint"])
    stage = Stage(None, before, notes=Notes(MARKED))
    stage.match()
    (queued,) = stage.jobs.queued
    (series,) = read_manifest(queued["submission"].kos).series
    assert {each.sop_instance_uid: each.key_images for each in series.instances} == {
        f"{STUDY}.1.1": (),
        f"{STUDY}.1.2": (KeyImage("2.25.90", "2.25.91", "Nodule"),),
    }
    again = Stage(None, archived(fingerprint=queued["fingerprint"]), notes=Notes(MARKED))
    again.match()
    assert again.jobs.ended[0][1] == "unchanged"


@pytest.mark.requirement("DB.SO.194")
def test_notes_that_cannot_be_fetched_are_waited_for_but_not_for_ever() -> None:
    stage = Stage(notes=Notes(Marks({}, complete=False)))
    for attempts in range(3):
        stage.match(attempts=attempts)
    assert (len(stage.jobs.retried), stage.jobs.ended) == (3, [])
    stage.match(attempts=3)
    assert stage.jobs.ended == [(5, "queued")]


# -- rejection notes ---------------------------------------------------------------------------------

NOTE = "2.25.77"
#: What a PACS keeps: the images, or nothing, and the note that rejected others.
NOTED = attrs.evolve(
    study(), series=(*study().series, Series("2.25.78", "KO", (Instance(NOTE, KOS_SOP_CLASS, 1),)))
)
ONLY_NOTED = attrs.evolve(NOTED, series=NOTED.series[1:])


@pytest.mark.requirement("DB.SO.25", "DB.SO.18")
def test_a_rejection_note_that_the_pacs_keeps_is_not_listed() -> None:
    stage = Stage(Pacses(PACS1=NOTED), titles={NOTE: "113039"})
    stage.match()
    (queued,) = stage.jobs.queued
    # As if the note were not there, to the last attribute: it was published, it comes, nothing changes.
    assert (queued["submission"].study, queued["fingerprint"]) == (study(), stage.print_())
    assert NOTE.encode() not in queued["submission"].kos


@pytest.mark.requirement("DB.SO.25")
@pytest.mark.parametrize(("title", "listed"), [("113001", True), ("113000", False), ("", False)])
def test_a_note_is_listed_where_the_site_says_so_and_other_key_objects_everywhere(
    title: str, listed: bool
) -> None:
    where = (site(list_rejection_notes=True),) if listed else ()
    stage = Stage(Pacses(PACS1=NOTED), titles={NOTE: title}, sites=where)
    stage.match()
    (queued,) = stage.jobs.queued
    assert queued["submission"].study == NOTED


@pytest.mark.requirement("DB.SO.25", "DB.SO.26", "DB.SO.190")
def test_a_study_of_which_only_the_note_is_left_is_gone() -> None:
    stage = Stage(Pacses(PACS1=ONLY_NOTED), archived(), titles={NOTE: "113037"})
    stage.match()
    assert stage.jobs.ended == [(5, "removal", {"site1"})]


@pytest.mark.requirement("DB.SO.25")
@pytest.mark.threat("images kept out of a KOS by a forged rejection note")
def test_only_a_key_object_can_be_a_rejection_note() -> None:
    stage = Stage(titles={f"{STUDY}.1.1": "113001"})
    stage.match()
    assert stage.jobs.queued[0]["submission"].study == study()


@pytest.mark.requirement("DB.SO.25")
def test_key_objects_nobody_knows_are_waited_for_but_not_for_ever() -> None:
    # Its archive sends nothing: what the key object is stays unknown.
    stage = Stage(Pacses(PACS1=NOTED))
    for attempts in range(3):
        stage.match(attempts=attempts)
    assert (len(stage.jobs.retried), stage.jobs.ended) == (3, [])
    stage.match(attempts=3)
    assert stage.jobs.ended == [(5, "queued")]


@pytest.mark.requirement("DB.SO.25", "DB.SO.31")
def test_a_change_of_address_drops_a_note_that_was_listed_before_it_was_known() -> None:
    old = Stage(Pacses(PACS1=NOTED), titles={NOTE: ""}, sites=(site(wado_fqdn="db1.350.test.fr"),))
    old.match()
    (queued,) = old.jobs.queued
    before = archived(data=queued["submission"].kos, fingerprint=queued["fingerprint"])
    stage = Stage(None, before, titles={NOTE: "113001"})
    stage.archive.submissions[before.id] = queued["submission"]
    stage.match(purpose=Purpose.READDRESS)
    assert stage.pacses.asked == []
    assert stage.jobs.queued[0]["submission"].study == study()


# -- how far a job may go ----------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.28")
def test_a_job_that_only_updates_withdraws_nothing_that_is_absent() -> None:
    stage = Stage(Pacses(PACS1=None), archived())
    stage.match(purpose=Purpose.UPDATE)
    assert stage.jobs.ended == [(5, "absent", "")]
    assert stage.notices.posted == []
    changed = Stage(None, archived())
    changed.match(purpose=Purpose.UPDATE)
    assert changed.jobs.ended == [(5, "queued")]


@pytest.mark.requirement("DB.SO.28", "DB.SO.97")
def test_what_nobody_speaks_for_is_withdrawn_whatever_the_purpose() -> None:
    stage = Stage(None, archived(), speaker=Voice.NONE_LEFT)
    stage.match(purpose=Purpose.UPDATE)
    assert stage.jobs.ended == [(5, "removal", None)]


@pytest.mark.requirement("DB.SO.28")
def test_a_released_removal_asks_once_more_and_waits_while_the_link_is_in_doubt() -> None:
    stage = Stage(Pacses(PACS1=None), archived(), doubt="examen témoin introuvable")
    stage.match(purpose=Purpose.WITHDRAW)
    assert stage.jobs.ended == []
    ((_, due, reason),) = stage.jobs.retried
    assert "témoin" in reason
    assert due > stage.clock.now()
    sure = Stage(Pacses(PACS1=None), archived())
    sure.match(purpose=Purpose.WITHDRAW)
    assert sure.jobs.ended == [(5, "removal", {"site1"})]
    # The link was verified after the answer, not before it.
    assert (sure.pacses.asked, sure.doubted) == (["PACS1"], ["site1"])
    found = Stage(None, archived(), doubt="examen témoin introuvable")
    found.match(purpose=Purpose.WITHDRAW)
    assert found.jobs.ended == [(5, "queued")]


def test_the_link_of_an_ordinary_event_is_not_verified() -> None:
    stage = Stage(Pacses(PACS1=None), archived(), doubt="examen témoin introuvable")
    stage.match()
    assert stage.jobs.ended == [(5, "removal", {"site1"})]
    assert stage.doubted == []


def published(stage: Stage, *, wado_fqdn: str | None = None) -> ArchivedKos:
    """What `stage` would publish, as archived, under the name of another time when one is given."""
    old = Stage(raw=stage.raw, sites=(site(wado_fqdn=wado_fqdn),) if wado_fqdn else ())
    old.match()
    (queued,) = old.jobs.queued
    stage.archive.submissions[7] = queued["submission"]
    kos = archived(data=queued["submission"].kos, fingerprint=queued["fingerprint"])
    stage.archive.kos.append(kos)
    return kos


def addresses(stage: Stage) -> set[str]:
    (queued,) = stage.jobs.queued
    return {series.retrieve_url for series in read_manifest(queued["submission"].kos).series}


@pytest.mark.requirement("DB.SO.31")
@pytest.mark.parametrize("answer", [SILENT, None, study(instances=9)], ids=["silent", "gone", "changed"])
def test_a_change_of_address_asks_no_pacs(answer: Any) -> None:
    stage = Stage(Pacses(PACS1=answer))
    published(stage, wado_fqdn="db1.350.mesimagesmedicales.fr")
    stage.match(purpose=Purpose.READDRESS)
    assert stage.pacses.asked == []
    base = "https://db1.349.mesimagesmedicales.fr/dicom-web-rs"
    assert addresses(stage) == {f"{base}/studies/{STUDY}/series/{STUDY}.1"}
    assert stage.jobs.queued[0]["submission"].study == study()


@pytest.mark.requirement("DB.SO.31")
def test_a_kos_with_the_address_of_today_is_not_published_again() -> None:
    stage = Stage(Pacses(PACS1=SILENT))
    published(stage)
    stage.match(purpose=Purpose.READDRESS)
    assert stage.jobs.ended == [(5, "unchanged", 7, "2.999.7.1")]


@pytest.mark.requirement("DB.SO.31")
@pytest.mark.parametrize("data", [None, b"not a KOS"], ids=["another address", "unreadable"])
def test_what_the_kos_itself_says_counts_whatever_its_fingerprint(data: bytes | None) -> None:
    stage = Stage(Pacses(PACS1=SILENT))
    kos = published(stage, wado_fqdn="db1.350.mesimagesmedicales.fr")
    stage.archive.kos[:] = [attrs.evolve(kos, fingerprint=stage.print_(), data=data or kos.data)]
    stage.match(purpose=Purpose.READDRESS)
    if data is None:
        assert stage.jobs.ended == [(5, "queued")]
    else:
        # Its key images would be lost in silence.
        assert stage.jobs.ended[0][:2] == (5, "E008")


@pytest.mark.requirement("DB.SO.31", "DB.SO.194")
def test_a_change_of_address_keeps_the_key_images() -> None:
    stage = Stage(Pacses(PACS1=SILENT))
    note = KeyImage("2.25.9", "2.25.8", "à revoir")
    marked = attrs.evolve(published(stage), id=7)
    old = Stage(notes=Notes(Marks({f"{STUDY}.1.1": (note,)})), sites=(site(wado_fqdn="db1.350.test.fr"),))
    old.match()
    stage.archive.submissions[7] = old.jobs.queued[0]["submission"]
    stage.archive.kos[:] = [attrs.evolve(marked, data=old.jobs.queued[0]["submission"].kos)]
    stage.match(purpose=Purpose.READDRESS)
    manifest = read_manifest(stage.jobs.queued[0]["submission"].kos)
    assert [one.key_images for one in manifest.series[0].instances] == [(note,), ()]
