"""What a PACS holds of a study, asked of three real ones and of a lying one (DB.SO.14)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from pydicom import dcmread
from pydicom.dataset import Dataset

from drimbox.dicom.dimse import Command
from drimbox.dicom.directory import find_study
from drimbox.dicom.requestor import STUDY_ROOT_FIND
from drimbox.errors import PacsCommunicationError
from drimbox.model import Identifier, StatedPatient, Study
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.peers import Dcmqrscp, Orthanc
from drimbox.sim.studies import GeneratedStudy, derived_uid, make_study
from tests.dicom.box import Box, reactor
from tests.dicom.scripted import Answering, ScriptedPacs

pytestmark = pytest.mark.requirement("DB.SO.14")
ABSENT = "1.2.3.4.5.6.7"


def canonical(study: Study | None, *, dcmtk: bool = False, optional: bool = True) -> Study | None:
    """The study with series and instances in a known order; without what a peer cannot know.

    DCMTK's index holds neither SOP classes nor series descriptions.
    """
    if study is None:
        return None
    series = []
    for each in sorted(study.series, key=lambda one: one.number or 0):
        instances = sorted(each.instances, key=lambda one: one.number or 0)
        if dcmtk:
            each = attrs.evolve(each, description="")
            instances = [attrs.evolve(one, sop_class_uid="") for one in instances]
        series.append(attrs.evolve(each, instances=tuple(instances)))
    plain = attrs.evolve(study, series=tuple(series))
    return plain if optional else attrs.evolve(plain, ins=None, patient_id_issuer="", patients=())


def assert_told(found: Study | None, study: GeneratedStudy) -> None:
    """A real PACS tells whose study it is: at least the local identifier (DB.SO.16)."""
    assert found is not None
    (told,) = found.patients
    assert told.patient_id == study.patient.id
    assert told.birth_date in ("", study.patient.birth_date)
    assert [each.value for each in told.ins] in ([], [study.patient.ins])


@pytest.mark.parametrize("relational", [True, False])
@pytest.mark.parametrize("ours", ["auto", "never"])
@pytest_twisted.ensureDeferred
async def test_the_simulated_pacs(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, relational: bool, ours: str
) -> None:
    pacs.behaviour = Behaviour(relational=relational)
    box.attach(pacs.port, relational=ours)
    found = await find_study(box.links, box.pacs, study.study_uid)
    assert canonical(found) == canonical(study.as_model())
    assert found is not None
    assert found.ins == "275061234567890"
    asked = [event.details["identifier"].QueryRetrieveLevel for event in pacs.seen("find")]
    used = relational and ours == "auto"
    assert asked == (["IMAGE"] if used else ["STUDY", "SERIES", "IMAGE", "IMAGE"])
    assert await find_study(box.links, box.pacs, ABSENT) is None


@pytest.mark.peer("dcmqrscp")
@pytest_twisted.ensureDeferred
async def test_dcmtk(box: Box, here: Path, study: GeneratedStudy) -> None:
    with Dcmqrscp(here, "PACS") as peer:
        peer.load(study.files)
        box.attach(peer.port)
        found = await find_study(box.links, box.pacs, study.study_uid)
        expected = canonical(study.as_model(), dcmtk=True, optional=False)
        assert canonical(found, optional=False) == expected
        assert_told(found, study)
        assert await find_study(box.links, box.pacs, ABSENT) is None


@pytest.mark.peer("Orthanc")
@pytest_twisted.ensureDeferred
async def test_orthanc(box: Box, here: Path, study: GeneratedStudy) -> None:
    with Orthanc(here, "PACS", clients=["DRIMBOX"]) as peer:
        peer.load(study.files)
        box.attach(peer.port)
        found = await find_study(box.links, box.pacs, study.study_uid)
        assert canonical(found, optional=False) == canonical(study.as_model(), optional=False)
        assert_told(found, study)
        assert await find_study(box.links, box.pacs, ABSENT) is None


# -- texts --------------------------------------------------------------------------------------------

FRENCH = "Échographie du cœur, côté gauche"
LATIN = "Échographie côté gauche"


def rewritten(study: GeneratedStudy, charset: str, text: str) -> GeneratedStudy:
    """Give the files of a study a character set and descriptions in it."""
    for path in study.files:
        data = dcmread(path)
        data.SpecificCharacterSet = charset
        data.StudyDescription = data.SeriesDescription = text
        data.PatientName = "MÜLLER^ÉLOÏSE"
        data.save_as(path, enforce_file_format=True)
    return study


PEERS: dict[str, Callable[[Path], Any]] = {
    "dcmqrscp": lambda folder: Dcmqrscp(folder, "PACS"),
    "Orthanc": lambda folder: Orthanc(folder, "PACS", clients=["DRIMBOX"]),
}


@pytest.mark.peer("dcmqrscp", "Orthanc")
@pytest.mark.parametrize("program", PEERS)
@pytest.mark.parametrize(("charset", "text"), [("ISO_IR 100", LATIN), ("ISO_IR 192", LATIN)])
@pytest_twisted.ensureDeferred
async def test_accents_survive_a_real_pacs(
    box: Box, tmp_path: Path, program: str, charset: str, text: str
) -> None:
    study = rewritten(make_study(tmp_path / "s", instances=1, rows=8, columns=8, seed=3), charset, text)
    with PEERS[program](tmp_path / "peer") as peer:
        peer.load(study.files)
        box.attach(peer.port)
        found = await find_study(box.links, box.pacs, study.study_uid)
        assert found is not None
        assert found.description == text
        # DCMTK's index holds no series descriptions.
        assert found.series[0].description == ("" if program == "dcmqrscp" else text)


@pytest.mark.parametrize(
    ("charset", "text"), [("ISO_IR 192", FRENCH), ("ISO_IR 100", LATIN), (["", "ISO 2022 IR 100"], LATIN)]
)
@pytest_twisted.ensureDeferred
async def test_accents_are_read_as_the_answer_declares_them(box: Box, charset: Any, text: str) -> None:
    def script(association: Answering, command: Command, query: Dataset | None) -> None:
        assert query is not None
        answer = reply(query)
        answer.SpecificCharacterSet = charset
        if query.QueryRetrieveLevel == "STUDY":
            answer.StudyDescription = text
        if query.QueryRetrieveLevel == "SERIES":
            answer.SeriesDescription = text
        association.answer(0xFF00, answer)
        association.answer(0x0000)

    found = await asked(box, script)
    assert found is not None
    assert found.description == found.series[0].description == text


# -- a PACS that lies ---------------------------------------------------------------------------------

STUDY, SERIES, IMAGE = "1.2.1", "1.2.1.1", "1.2.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"


def reply(query: Dataset) -> Dataset:
    """A right answer to a query at any level: one series of one image."""
    answer = Dataset()
    answer.QueryRetrieveLevel = query.QueryRetrieveLevel
    answer.StudyInstanceUID = STUDY
    if query.QueryRetrieveLevel != "STUDY":
        answer.SeriesInstanceUID = str(query.get("SeriesInstanceUID") or SERIES)
    if query.QueryRetrieveLevel == "IMAGE":
        answer.SOPInstanceUID, answer.SOPClassUID = IMAGE, CT
    return answer


async def asked(box: Box, script: Any, *, relational: bool = False, **changes: Any) -> Study | None:
    """Ask a scripted PACS about the study."""
    extended = {STUDY_ROOT_FIND: b"\x01"} if relational else None
    async with ScriptedPacs(script, extended=extended) as pacs:
        box.attach(pacs.port, **changes)
        found = await find_study(box.links, box.pacs, STUDY)
        assert pacs.ends == ["release"]
        return found


def lying(level: str, *lies: dict[str, Any]) -> Any:
    """Answer rightly, and once more with each of these lies at this level."""

    def script(association: Answering, command: Command, query: Dataset | None) -> None:
        assert query is not None
        association.answer(0xFF00, reply(query))
        for lie in lies if query.QueryRetrieveLevel == level else ():
            answer = reply(query)
            for keyword, value in lie.items():
                if value is None:
                    delattr(answer, keyword)
                else:
                    setattr(answer, keyword, value)
            association.answer(0xFF00, answer)
        association.answer(0x0000)

    return script


@pytest.mark.parametrize("relational", [True, False])
@pytest.mark.parametrize("level", ["STUDY", "SERIES", "IMAGE"])
@pytest_twisted.ensureDeferred
async def test_another_studys_matches_are_dropped(box: Box, level: str, relational: bool) -> None:
    """A PACS that ignores the key lists everybody's images."""
    lie = {"StudyInstanceUID": "1.2.9"}
    if level != "STUDY":
        lie["SeriesInstanceUID"] = "1.2.9.1"
    if level == "IMAGE":
        lie["SOPInstanceUID"] = "1.2.9.1.1"
    found = await asked(box, lying(level, lie), relational=relational)
    assert found is not None
    assert [each.series_uid for each in found.series] == [SERIES]
    assert [each.sop_instance_uid for each in found.series[0].instances] == [IMAGE]


@pytest_twisted.ensureDeferred
async def test_another_series_images_are_dropped(box: Box) -> None:
    lie = {"SeriesInstanceUID": "1.2.1.2", "SOPInstanceUID": "1.2.1.2.1"}
    found = await asked(box, lying("IMAGE", lie))
    assert found is not None
    assert found.instance_count == 1


@pytest_twisted.ensureDeferred
async def test_repeated_matches_count_once(box: Box, pacs: SimulatedPacs, study: GeneratedStudy) -> None:
    pacs.behaviour = Behaviour(find_repeat=True, find_foreign=True)
    for relational in (True, False):
        pacs.behaviour = attrs.evolve(pacs.behaviour, relational=relational)
        found = await find_study(box.links, box.pacs, study.study_uid)
        assert canonical(found) == canonical(study.as_model())


@pytest.mark.threat("path traversal by UID, AE title, file name")
@pytest.mark.parametrize(
    "uid", ["../../etc/passwd", "1.2.x", "", "1" * 65, "1..2", "1.2\r\nX: y", "01.2 3"]
)
@pytest.mark.parametrize(
    ("level", "keyword"), [("SERIES", "SeriesInstanceUID"), ("IMAGE", "SOPInstanceUID")]
)
@pytest_twisted.ensureDeferred
async def test_a_uid_that_is_none_is_an_error(box: Box, level: str, keyword: str, uid: str) -> None:
    with pytest.raises(PacsCommunicationError, match=f"{keyword} absent ou invalide"):
        await asked(box, lying(level, {keyword: uid}))


@pytest_twisted.ensureDeferred
async def test_a_study_match_without_its_uid_is_not_an_absent_study(box: Box) -> None:
    for relational in (True, False):
        level = "IMAGE" if relational else "STUDY"
        with pytest.raises(PacsCommunicationError, match="StudyInstanceUID absent"):
            await asked(box, lying(level, {"StudyInstanceUID": None}), relational=relational)


@pytest_twisted.ensureDeferred
async def test_a_study_without_series_or_without_images_is_none(box: Box) -> None:
    for empty in ("SERIES", "IMAGE"):

        def script(association: Answering, command: Command, query: Any, empty: str = empty) -> None:
            if query.QueryRetrieveLevel != empty:
                association.answer(0xFF00, reply(query))
            association.answer(0x0000)

        assert await asked(box, script) is None


@pytest_twisted.ensureDeferred
async def test_a_sop_class_that_is_none_is_not_known(box: Box) -> None:
    found = await asked(box, lying("IMAGE", {"SOPInstanceUID": "1.2.1.1.2", "SOPClassUID": "CT"}))
    assert found is not None
    assert [each.sop_class_uid for each in found.series[0].instances] == [CT, ""]


# -- a PACS that fails --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(find="silent"), "pas de réponse du PACS"),
        (Behaviour(find="abort"), "interrompue par le PACS"),
        (Behaviour(find="close"), "coupée|fermée"),
        (Behaviour(find="garbage"), "PDU type"),
        (Behaviour(find_status=0xA700), "état 0xA700"),
        (Behaviour(find_status=0xC001), "état 0xC001"),
        (Behaviour(find_stop_after=1), "interrompue par le PACS"),
        (Behaviour(find_delay=6.0), "pas de réponse du PACS"),
        (Behaviour(connection="silent"), "pas de réponse à la demande"),
        (Behaviour(down=True), "injoignable"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_fails_is_e003_and_never_an_absent_study(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, behaviour: Behaviour, words: str
) -> None:
    pacs.behaviour = behaviour
    start = reactor.seconds()
    with pytest.raises(PacsCommunicationError, match=words) as caught:
        await find_study(box.links, box.pacs, study.study_uid)
    assert caught.value.code == "E003"
    assert caught.value.retry
    assert reactor.seconds() - start < 10
    pacs.behaviour = Behaviour()
    assert await find_study(box.links, box.pacs, study.study_uid) is not None


@pytest_twisted.ensureDeferred
async def test_the_pacs_own_words_are_not_repeated(box: Box) -> None:
    """They may name the patient."""

    def script(association: Answering, command: Command, query: Dataset | None) -> None:
        association.answer(0xC000, error_comment="DUPONT JEANNE inconnue")

    with pytest.raises(PacsCommunicationError) as caught:
        await asked(box, script)
    assert "DUPONT" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_query_that_never_ends_is_given_up(box: Box) -> None:
    """Each answer comes in time, the last one never."""

    def script(association: Answering, command: Command, query: Any) -> None:
        def again() -> None:
            if association.layer.established:
                answer = reply(query)
                answer.StudyInstanceUID = derived_uid(reactor.seconds())
                association.answer(0xFF00, answer)
                reactor.callLater(0.02, again)

        again()

    async with ScriptedPacs(script) as pacs:
        box.attach(pacs.port, move_ceiling=0.5)
        with pytest.raises(PacsCommunicationError, match="C-FIND : plus de"):
            await find_study(box.links, box.pacs, STUDY)
        assert pacs.ends == ["abort"]


# -- whose images (DB.SO.16, DB.SO.191) -----------------------------------------------------------------

OURS, OTHER = "284070100499094", "180021234567890"
NIR = "1.2.250.1.213.1.4.10"


def qualifiers(oid: str) -> list[Dataset]:
    item = Dataset()
    item.UniversalEntityID, item.UniversalEntityIDType = oid, "ISO"
    return [item]


def other_id(value: str, oid: str = "", issuer: str = "") -> Dataset:
    item = Dataset()
    item.PatientID, item.TypeOfPatientID = value, "TEXT"
    if issuer:
        item.IssuerOfPatientID = issuer
    if oid:
        item.IssuerOfPatientIDQualifiersSequence = qualifiers(oid)
    return item


@pytest.mark.requirement("DB.SO.16", "DB.SO.191")
@pytest.mark.parametrize("relational", [True, False])
@pytest_twisted.ensureDeferred
async def test_all_that_tells_the_patient_is_asked_for_and_read(box: Box, relational: bool) -> None:
    asked_for: list[Dataset] = []

    def script(association: Answering, command: Command, query: Dataset | None) -> None:
        assert query is not None
        asked_for.append(query)
        answer = reply(query)
        if "PatientID" in query:
            answer.PatientID, answer.IssuerOfPatientID = "IPP-1", "CH-EXEMPLE"
            answer.IssuerOfPatientIDQualifiersSequence = qualifiers("1.2.250.1.71.4.2.7.1")
            answer.PatientBirthDate = "19840701"
            answer.OtherPatientIDsSequence = [
                other_id("X", "1.2.3"),
                other_id(OURS, NIR),
                other_id(OTHER, issuer="ASIP-SANTE-INS-NIA"),
                other_id("", NIR),
            ]
        association.answer(0xFF00, answer)
        association.answer(0x0000)

    found = await asked(box, script, relational=relational)
    assert found is not None
    told = StatedPatient(
        "IPP-1",
        "CH-EXEMPLE",
        "1.2.250.1.71.4.2.7.1",
        (Identifier(OURS, NIR), Identifier(OTHER, "")),
        "19840701",
    )
    assert found.patients == found.stated_patients == (told,)
    assert found.ins == OURS
    keys = {
        "PatientID",
        "IssuerOfPatientID",
        "IssuerOfPatientIDQualifiersSequence",
        "OtherPatientIDsSequence",
        "PatientBirthDate",
    }
    # Below the study a PACS that is asked level by level may refuse the keys of the study.
    levels = {str(query.QueryRetrieveLevel): keys & set(query.dir()) for query in asked_for}
    expected = {"IMAGE": keys} if relational else {"STUDY": keys, "SERIES": set(), "IMAGE": set()}
    assert levels == expected


@pytest.mark.requirement("DB.SO.16", "DB.SO.191")
@pytest.mark.parametrize(
    ("relational", "level", "unique"),
    [
        (True, "IMAGE", {"SOPInstanceUID": "1.2.1.1.2"}),
        (False, "STUDY", {}),
        (False, "SERIES", {"SeriesInstanceUID": "1.2.1.2"}),
        (False, "IMAGE", {"SOPInstanceUID": "1.2.1.1.2"}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_answer_that_says_something_else_of_the_patient_is_kept(
    box: Box, relational: bool, level: str, unique: dict[str, Any]
) -> None:
    """Also what a PACS says unasked below the study."""
    lies = [
        {**unique, "PatientID": "P-1", "PatientBirthDate": "19000101"},
        {**unique, "PatientID": "P-1", "PatientBirthDate": "19000101"},
        {**unique, "PatientID": "P-1", "OtherPatientIDsSequence": [other_id(OTHER, NIR)]},
    ]
    found = await asked(box, lying(level, *lies), relational=relational)
    assert found is not None
    assert found.patients == (
        StatedPatient(),
        StatedPatient("P-1", birth_date="19000101"),
        StatedPatient("P-1", ins=(Identifier(OTHER, NIR),)),
    )
    # One answer may hold what the first lacks.
    assert found.ins == OTHER
