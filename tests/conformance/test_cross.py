"""The cross validator: a good set says nothing, and every rule has an input that breaks it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drimbox.conformance import cross, cross_images, cross_metadata, cross_rules
from drimbox.conformance.cross import validate_cross
from drimbox.conformance.report import Report
from drimbox.conformance.rules import Rule
from drimbox.sim.ris import SimMessage, build_message
from drimbox.sim.ris_report import SimAct, SimOrder, SimReport, build_cda
from drimbox.sim.studies import GeneratedStudy
from drimbox.sim.study_objects import add_key_objects
from tests.cda.samples import published
from tests.conformance.cross_inputs import (
    IPP,
    OTHER,
    PATIENT,
    REPORT,
    STUDY,
    Inputs,
    edited,
    make_images,
    make_inputs,
    make_manifest,
)
from tests.kos import samples

RULES = [*cross.RULES, *cross_rules.RULES, *cross_images.RULES, *cross_metadata.RULES]
Spoil = Callable[[Inputs], None]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GeneratedStudy:
    return make_images(tmp_path_factory.mktemp("cross"))


@pytest.fixture
def inputs(study: GeneratedStudy, tmp_path: Path) -> Inputs:
    return make_inputs(study, tmp_path)


def judge(inputs: Inputs) -> Report:
    return validate_cross(
        inputs.report,
        inputs.kos,
        inputs.images,
        metadata=inputs.metadata or None,
        excluded_roots=inputs.roots,
    )


def in_kos(change: Callable[[Any], None]) -> Spoil:
    return lambda inputs: inputs.edit_kos(change)


def in_image(change: Callable[[Any], None], name: str = "CT") -> Spoil:
    return lambda inputs: inputs.edit_image(change, name)


def in_metadata(old: str, new: str) -> Spoil:
    return lambda inputs: inputs.edit_metadata(old, new)


def in_report(old: str, new: str) -> Spoil:
    return lambda inputs: inputs.edit_report(old, new)


def sets(**values: Any) -> Callable[[Any], None]:
    def change(dataset: Any) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    return change


def drops(*names: str) -> Callable[[Any], None]:
    def change(dataset: Any) -> None:
        for name in names:
            delattr(dataset, name)

    return change


def series_of(dataset: Any, number: int = 0) -> Any:
    return dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[number]


def first(dataset: Any) -> Any:
    return series_of(dataset).ReferencedSOPSequence[0]


def mark(dataset: Any) -> Any:
    return first(dataset).ReferencedSOPSequence[0]


def request(dataset: Any) -> Any:
    return dataset.ReferencedRequestSequence[0]


def text_replaced(old: str, new: str) -> Callable[[Any], None]:
    def change(dataset: Any) -> None:
        item = dataset.ContentSequence[-1]
        assert old in item.TextValue
        item.TextValue = item.TextValue.replace(old, new)

    return change


def moved_series(dataset: Any) -> None:
    reference = series_of(dataset).ReferencedSOPSequence.pop(0)
    series_of(dataset, 1).ReferencedSOPSequence.append(reference)


def other_study(dataset: Any) -> None:
    dataset.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID = OTHER


def second_copy(inputs: Inputs) -> None:
    shutil.copy(inputs.files[0], inputs.images / "again.dcm")


def foreign_file(inputs: Inputs) -> None:
    data = edited(inputs.files[0].read_bytes(), sets(StudyInstanceUID=OTHER, SOPInstanceUID="2.25.7"))
    (inputs.images / "other.dcm").write_bytes(data)


def extra_file(inputs: Inputs) -> None:
    (inputs.images / "new.dcm").write_bytes(
        edited(inputs.files[0].read_bytes(), sets(SOPInstanceUID="2.25.7"))
    )


def rejection_note(listed: bool) -> Spoil:
    def spoil(inputs: Inputs) -> None:
        study = make_images(inputs.images)
        rejected = add_key_objects(study, title="113039", targets=study.instances[:1])
        if listed:
            inputs.kos = [make_manifest(rejected)]

    return spoil


def no_marks(dataset: Any) -> None:
    del first(dataset).ReferencedSOPSequence


def mark_elsewhere(dataset: Any) -> None:
    references = series_of(dataset).ReferencedSOPSequence
    references[1].ReferencedSOPSequence = references[0].ReferencedSOPSequence


def note_title(dataset: Any) -> None:
    dataset.ConceptNameCodeSequence[0].CodeValue = "113004"


def swapped_orders(inputs: Inputs) -> None:
    orders = (SimOrder(), SimOrder("ACC-2", "2.999.5.3", "5502", "2.999.5.4"))
    inputs.report = build_message(attrs.evolve(REPORT, orders=orders))

    def change(dataset: Any) -> None:
        import copy

        dataset.ReferencedRequestSequence.append(copy.deepcopy(request(dataset)))
        one, two = dataset.ReferencedRequestSequence
        one.PlacerOrderNumberImagingServiceRequest = "5502"
        two.AccessionNumber = "ACC-2"

    inputs.edit_kos(change)


def twice(dataset: Any) -> None:
    dataset.ReferencedRequestSequence.append(request(dataset))


def message(report: SimReport, **changes: Any) -> Spoil:
    def spoil(inputs: Inputs) -> None:
        inputs.report = build_message(
            attrs.evolve(report, **changes), SimMessage(), document=build_cda(report)
        )

    return spoil


def report_with(**changes: Any) -> Spoil:
    def spoil(inputs: Inputs) -> None:
        inputs.report = build_cda(attrs.evolve(REPORT, **changes))

    return spoil


def without_images(inputs: Inputs) -> None:
    for path in inputs.files:
        path.unlink()


def too_many(inputs: Inputs) -> None:
    for number in range(4):
        (inputs.images / f"{number}.txt").write_text("x")


def long_names(inputs: Inputs) -> None:
    # A used name so long that our producer must cut it.
    long = attrs.evolve(REPORT, used_family="ABCDEFGHI " * 8)
    inputs.report = build_message(long)
    study = make_images(inputs.images)
    inputs.kos = [make_manifest(study, long)]


#: For each rule, what to do to good inputs so that it is broken.
BROKEN: dict[str, Spoil] = {
    "files.report": lambda inputs: setattr(inputs, "report", b"<ClinicalDocument/>"),
    "files.kos": lambda inputs: inputs.kos.__setitem__(0, b"x" * 400),
    "files.kos_many": lambda inputs: inputs.kos.extend([b""] * 100),
    "files.images": too_many,
    "files.kos_twice": lambda inputs: inputs.kos.append(inputs.kos[0]),
    "files.kos_missing": lambda inputs: inputs.kos.append(inputs.kos[0]),
    "cross.report.study": report_with(acts=()),
    "cross.report.study_uid": report_with(acts=(*REPORT.acts, SimAct("ABC"))),
    "cross.report.order": report_with(orders=()),
    "cross.report.order_part": report_with(orders=(SimOrder(accession_authority=""),)),
    "cross.report.ins": report_with(ins=""),
    "cross.report.structure": report_with(structure_id=""),
    "cross.report.modality": report_with(acts=(attrs.evolve(REPORT.acts[0], modalities=()),)),
    "cross.report.region": report_with(acts=(attrs.evolve(REPORT.acts[0], regions=()),)),
    "cross.message.ins": message(REPORT, ins="279035121518989"),
    "cross.message.ipp": message(REPORT, ipp="P999999"),
    "cross.kos.class": in_kos(sets(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22")),
    "cross.study.other": in_kos(sets(StudyInstanceUID="2.25.7")),
    "cross.study.several": in_kos(other_study),
    "cross.patient.ins": in_kos(sets(PatientID="279035121518989")),
    "cross.patient.oid": in_kos(
        lambda dataset: sets(UniversalEntityID="1.2.250.1.213.1.4.8")(
            dataset.IssuerOfPatientIDQualifiersSequence[0]
        )
    ),
    "cross.patient.issuer": in_kos(sets(IssuerOfPatientID="ASIP-SANTE-INS-NIA")),
    "cross.patient.trait": in_kos(sets(PatientBirthDate="19840702")),
    "cross.patient.name": in_kos(sets(OtherPatientNames=["^CLAIRE MARIE", "AUTRE"])),
    "cross.patient.spelling": in_kos(sets(PatientName="Exemple^CLAIRE")),
    "cross.patient.cut": long_names,
    "cross.patient.absent": in_kos(drops("PatientComments")),
    "cross.request.accession": in_kos(lambda dataset: sets(AccessionNumber="X")(request(dataset))),
    "cross.request.order": in_kos(
        lambda dataset: sets(PlacerOrderNumberImagingServiceRequest="X")(request(dataset))
    ),
    "cross.request.accession_issuer": in_kos(
        lambda dataset: sets(UniversalEntityID="2.999.9")(
            request(dataset).IssuerOfAccessionNumberSequence[0]
        )
    ),
    "cross.request.order_issuer": in_kos(
        lambda dataset: sets(UniversalEntityID="2.999.9")(request(dataset).OrderPlacerIdentifierSequence[0])
    ),
    "cross.request.pair": swapped_orders,
    "cross.request.extra": in_kos(lambda dataset: sets(AccessionNumber="X")(request(dataset))),
    "cross.request.twice": in_kos(twice),
    "cross.request.study": in_kos(lambda dataset: sets(StudyInstanceUID="2.25.7")(request(dataset))),
    "cross.act.text": in_kos(text_replaced("Scanner du thorax", "Scanner du genou")),
    "cross.act.region": in_kos(text_replaced("Scanner du thorax", "Thorax")),
    "cross.act.modality": report_with(
        acts=(attrs.evolve(REPORT.acts[0], modalities=("CT", "PT")), REPORT.acts[1])
    ),
    "cross.structure.id": in_kos(sets(InstitutionName="CABINET^^^^^^^^^1888888888")),
    "cross.structure.absent": in_kos(sets(InstitutionName="CABINET")),
    "cross.date.study": in_kos(sets(StudyDate="20240315")),
    "cross.date.created": in_kos(sets(InstanceCreationDate="20260101")),
    "images.none": without_images,
    "images.unreadable": lambda inputs: [
        (inputs.images / "notes.txt").write_text("x"),
        None,
    ][1],
    "images.twice": second_copy,
    "images.missing": lambda inputs: inputs.files[0].unlink(),
    "images.extra": extra_file,
    "images.foreign": foreign_file,
    "images.filtered": lambda inputs: inputs.roots.append("2.25"),
    "images.study": in_image(sets(StudyInstanceUID=OTHER)),
    "images.series": in_kos(moved_series),
    "images.class": in_kos(
        lambda dataset: sets(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.4")(first(dataset))
    ),
    "images.number": in_image(sets(InstanceNumber=77)),
    "images.series_number": in_image(sets(SeriesNumber=77)),
    "images.modality": in_kos(text_replaced(": CT @", ": MR @")),
    "images.date": in_kos(sets(StudyDate="20240311")),
    "images.patient.ins": in_image(
        lambda dataset: sets(PatientID="279035121518989")(dataset.OtherPatientIDsSequence[0])
    ),
    "images.patient.ipp": in_image(
        lambda dataset: (drops("OtherPatientIDsSequence")(dataset), sets(PatientID="P9")(dataset))[1]
    ),
    "images.patient.nobody": in_image(
        lambda dataset: (drops("OtherPatientIDsSequence")(dataset), sets(PatientID="")(dataset))[1]
    ),
    "images.patient.birth_date": in_image(sets(PatientBirthDate="19840702")),
    "images.rejected": rejection_note(listed=False),
    "images.rejection_note": rejection_note(listed=True),
    "images.key.unmarked": in_kos(no_marks),
    "images.key.unknown": in_kos(lambda dataset: sets(ReferencedSOPInstanceUID="2.25.7")(mark(dataset))),
    "images.key.uncited": in_kos(mark_elsewhere),
    "images.key.series": in_kos(lambda dataset: sets(SeriesInstanceUID="2.25.7")(mark(dataset))),
    "images.key.title": in_image(note_title, "KO"),
    "metadata.unreadable": lambda inputs: setattr(inputs, "metadata", b"<a/>"),
    "metadata.entry": in_metadata("IMG-KOS", "11488-4"),
    "metadata.kos": in_metadata("2.25.9001", "2.25.9003"),
    "metadata.study": in_metadata(f"{STUDY}^^^", "2.25.7^^^"),
    "metadata.patient": in_metadata(f'value="{REPORT.ins}^^^', 'value="279035121518989^^^'),
    "metadata.trait": in_metadata("PID-7|1984", "PID-7|1985"),
    "metadata.accession": in_metadata("ACC-7788", "ACC-7789"),
    "metadata.order": in_metadata("5501^^^", "5502^^^"),
    "metadata.modality": in_metadata('nodeRepresentation="CT"', 'nodeRepresentation="MR"'),
    "metadata.region": in_metadata('nodeRepresentation="67734004"', 'nodeRepresentation="774007"'),
    "metadata.start": in_metadata("<Value>20240312090000", "<Value>20230312090000"),
    "metadata.authenticator": in_metadata(REPORT.author_rpps, "899700000009"),
    "metadata.structure": in_metadata(REPORT.structure_id, "1888888888"),
    "metadata.facility": in_metadata(REPORT.facility_type, "SA01"),
    "metadata.practice": in_metadata("AMBULATOIRE", "ETABLISSEMENT"),
    "metadata.language": in_metadata("fr-FR", "en-US"),
    "metadata.visibility": lambda inputs: setattr(
        inputs, "report", build_message(REPORT, SimMessage(flags={"INVISIBLE_PATIENT": "Y"}))
    ),
}


@pytest.mark.requirement("DB.SO.105", "DB.SO.12", "DB.SO.18")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_one_broken_rule(rule: Rule, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    if rule.id == "files.images":
        monkeypatch.setattr("drimbox.conformance.image_facts.MAX_FILES", 6)
    BROKEN[rule.id](inputs)
    found = {each.rule: each for each in judge(inputs).findings}
    assert rule.id in found, sorted(found)
    assert found[rule.id].severity is rule.severity
    assert found[rule.id].clause == rule.clause


@pytest.mark.requirement("DB.SO.105", "DB.SO.12", "DB.SO.18", "DB.SO.194")
def test_nothing_broken_is_nothing_said(inputs: Inputs) -> None:
    report = judge(inputs)
    assert report.findings == []
    assert report.facts["manifests"] == [
        {"study_uid": STUDY, "kos_uid": "2.25.9001", "series": 3, "instances": 5}
    ]
    inputs.report = build_cda(REPORT)
    assert judge(inputs).findings == []


def test_a_broken_trait_is_told_without_being_quoted(inputs: Inputs) -> None:
    inputs.report = build_message(
        attrs.evolve(
            REPORT, ins="279035121518989", family="SECRET", orders=(SimOrder("ACC-9", order="99"),)
        )
    )
    text = "\n".join(judge(inputs).lines())
    assert "nom de naissance" in text
    for value in (REPORT.ins, "279035121518989", "SECRET", "EXEMPLE", "ACC-9", "ACC-7788", IPP):
        assert value not in text


def test_several_studies_need_a_manifest_each(inputs: Inputs, study: GeneratedStudy) -> None:
    def other(dataset: Any) -> None:
        dataset.StudyInstanceUID = OTHER
        dataset.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID = OTHER
        request(dataset).StudyInstanceUID = OTHER
        text = dataset.ContentSequence[-1]
        text.TextValue = text.TextValue.replace("Scanner du thorax", "IRM tête").replace(": CT", ": MR")

    inputs.kos.append(edited(inputs.kos[0], other))
    report = validate_cross(inputs.report, inputs.kos)
    assert report.ok, report.lines()
    inputs.kos.pop(0)
    assert validate_cross(inputs.report, inputs.kos).ok


def test_the_local_identifier_decides_where_images_have_no_ins(inputs: Inputs) -> None:
    for number, path in enumerate(inputs.files):
        path.write_bytes(edited(path.read_bytes(), drops("OtherPatientIDsSequence")))
        assert path.read_bytes(), number
    assert judge(inputs).findings == []
    inputs.edit_report(f'extension="{PATIENT.id}"', 'extension="P000124"')
    found = judge(inputs).findings
    assert [each.rule for each in found] == ["images.patient.ipp"]
    assert "5 image(s)" in found[0].text


def test_instances_of_an_excluded_root_are_not_missed(inputs: Inputs) -> None:
    data = edited(inputs.files[0].read_bytes(), sets(SOPInstanceUID="2.999.66.1"))
    (inputs.images / "ai.dcm").write_bytes(data)
    assert [each.rule for each in judge(inputs).findings] == ["images.extra"]
    inputs.roots.append("2.999.66")
    assert judge(inputs).findings == []


def test_a_rejected_instance_may_be_gone_or_still_there(inputs: Inputs, study: GeneratedStudy) -> None:
    rejection_note(listed=False)(inputs)
    kept = edited(inputs.kos[0], lambda dataset: series_of(dataset).ReferencedSOPSequence.pop(0) and None)
    inputs.kos = [kept]
    assert [each.rule for each in judge(inputs).findings] == []
    inputs.files[0].unlink()
    assert [each.rule for each in judge(inputs).findings] == []


@pytest.mark.threat("path traversal by UID, AE title, file name")
def test_links_are_not_followed(inputs: Inputs, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.move(inputs.files[0], outside / "x.dcm")
    (inputs.images / "link.dcm").symlink_to(outside / "x.dcm")
    (inputs.images / "folder").symlink_to(outside)
    assert [each.rule for each in judge(inputs).findings] == ["images.missing"]


# --- published samples ---------------------------------------------------------------------------------


def test_the_published_manifest_is_not_of_the_published_report() -> None:
    """The authors say that both are unrelated: other patient, other study, other orders."""
    report = validate_cross(
        published("CDA/IMG_CR_IMG_2023.11_CDA-R2-Niveau-1.xml"), [published("KOS/ko.dcm")]
    )
    found = {each.rule for each in report.findings if each.rule.startswith(("cross.", "files."))}
    assert found == {
        "cross.study.other",
        "cross.patient.ins",
        "cross.patient.trait",
        "cross.patient.absent",
        "cross.request.accession",
        "cross.request.order",
        "cross.request.extra",
        "cross.structure.absent",
    }


def test_the_published_message_is_read() -> None:
    report = validate_cross(published("HL7/patient1.hl7"), [published("KOS/ko.dcm")])
    assert "files.report" not in {each.rule for each in report.findings}
    assert report.facts["studies"]


# --- damage --------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_gives_a_report_without_the_patient(
    data: st.DataObject, study: GeneratedStudy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = Inputs(build_message(REPORT), [make_manifest(study)], study.folder, b"")
    target = data.draw(st.sampled_from(["report", "cda", "kos"]))
    whole = {"report": good.report, "cda": build_cda(REPORT), "kos": good.kos[0]}[target]
    at = data.draw(st.integers(0, len(whole)))
    damage = data.draw(st.binary(max_size=16))
    spoilt = whole[:at] + damage + (b"" if data.draw(st.booleans()) else whole[at + len(damage) :])
    if target == "kos":
        good.kos = [spoilt]
    else:
        good.report = spoilt
    text = "\n".join(judge(good).lines())
    assert REPORT.ins not in text
    assert REPORT.family not in text


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=24), st.booleans())
@settings(max_examples=120, deadline=None)
def test_any_damage_of_an_image_gives_a_report(at: int, damage: bytes, cut: bool) -> None:
    import tempfile

    from drimbox.sim.studies import make_study

    with tempfile.TemporaryDirectory() as folder:
        made = make_study(Path(folder), instances=1, rows=8, columns=8, study_uid=STUDY, distinct=1)
        path = made.files[0]
        good = path.read_bytes()
        at = min(at, len(good))
        path.write_bytes(good[:at] + damage + (b"" if cut else good[at + len(damage) :]))
        assert validate_cross(build_cda(REPORT), [samples.build()], Path(folder)).lines()
