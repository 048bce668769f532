"""Each set is held against itself; what does not hold together is refused, and costs the others nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest

from drimbox.kos import reading
from drimbox.model import Visibility
from drimbox.xdm import checking, metadata, opening, rebuilding
from drimbox.xdm.checking import RefusedKos, TakenKos, check_set, pack, unpack
from drimbox.xdm.names import Month
from drimbox.xdm.takeover import takeover, within
from tests.store import samples
from tests.xdm.builders import CREATED, Published, files, published, taken
from tests.xds.builders import samples as published_samples

pytestmark = pytest.mark.requirement("DB.SO.30")
Files = dict[str, bytes]


def _replace(held: Files, name: str, before: str, after: str) -> None:
    assert before.encode() in held[name], before
    held[name] = held[name].replace(before.encode(), after.encode())


def _other_hash(held: Files) -> None:
    held["KOS_1_1.DCM"] = held["KOS_1_1.DCM"].replace(b"Axial", b"Coron")


def _other_size(held: Files) -> None:
    size = len(held["KOS_1_1.DCM"])
    _replace(held, "METADATA.XML", f"<Value>{size}</Value>", f"<Value>{size + 1}</Value>")


def _other_identifier(held: Files) -> None:
    _replace(held, "METADATA.XML", 'value="2.25.5001"', 'value="2.25.5009"')


def _other_patient(held: Files) -> None:
    _replace(held, "METADATA.XML", "284070100499094^", "284070100499095^")
    _replace(held, "CR.TXT", "284070100499094", "284070100499095")


def _other_domain(held: Files) -> None:
    _replace(
        held,
        "METADATA.XML",
        "284070100499094^^^&amp;1.2.250.1.213.1.4.10",
        "284070100499094^^^&amp;1.2.250.1.213.1.4.8",
    )


def _no_domain(held: Files) -> None:
    _replace(
        held, "METADATA.XML", "284070100499094^^^&amp;1.2.250.1.213.1.4.10", "284070100499094^^^&amp;1.2.3"
    )


def _other_study(held: Files) -> None:
    _replace(held, "METADATA.XML", "<Value>2.25.1^^^", "<Value>2.25.2^^^")


def _report_of_another(held: Files) -> None:
    _replace(held, "CR.TXT", "284070100499094", "284070100499095")


def _no_metadata(held: Files) -> None:
    del held["METADATA.XML"]


def _no_kos(held: Files) -> None:
    del held["KOS_1_1.DCM"]


def _not_dicom(held: Files) -> None:
    held["KOS_1_1.DCM"] = b"MZ" + bytes(2000)


def _not_xml(held: Files) -> None:
    held["METADATA.XML"] = held["METADATA.XML"][:500]


def _with_entity(held: Files) -> None:
    held["METADATA.XML"] = (
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + held["METADATA.XML"][39:]
    )


def _no_objects(held: Files) -> None:
    held["METADATA.XML"] = b"<SubmitObjectsRequest/>"


def _bad_reports(held: Files) -> None:
    held["CR.TXT"] = b"n'importe quoi\r\n"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_other_hash, "empreinte"),
        (_other_size, "taille"),
        (_other_identifier, "uniqueId"),
        (_other_patient, "patient du KOS"),
        (_other_domain, "patient du KOS"),
        (_no_domain, "sans INS"),
        (_other_study, "examen du KOS"),
        (_report_of_another, "CR.TXT est d'un autre patient"),
        (_no_metadata, "METADATA.XML absent"),
        (_no_kos, "aucun fichier KOS"),
        (_not_dicom, "DICOM illisible"),
        (_not_xml, "METADATA.XML illisible"),
        (_with_entity, "METADATA.XML illisible"),
        (_no_objects, "RegistryObjectList"),
        (_bad_reports, "CR.TXT"),
    ],
)
@pytest.mark.threat("a KOS in the record of another patient")
def test_a_set_that_contradicts_itself_is_refused(spoil: Callable[[Files], None], reason: str) -> None:
    held = files()
    assert isinstance(check_set(held)[0], TakenKos)
    spoil(held)
    (found,) = check_set(held)
    assert isinstance(found, RefusedKos)
    assert reason in found.reason
    assert "284070100499094" not in found.reason


def test_what_lacks_is_taken_with_a_remark() -> None:
    held = files()
    del held["CR.TXT"]
    (found,) = check_set(held)
    assert isinstance(found, TakenKos)
    assert found.warnings == (checking.NO_REPORT,)
    held = files()
    held["CR.TXT"] += b"2.25.7;1.2.250.1.213.1.4.10;111111111111111\r\n"
    (found,) = check_set(held)
    assert isinstance(found, TakenKos)
    assert found.warnings == (checking.OTHER_PATIENT,)
    assert [line.document_id for line in found.reports] == ["2.25.901"]


def test_several_manifests_of_one_set_are_each_their_own() -> None:
    one, two = files(1), files(2)
    second = two["METADATA.XML"].split(b"<ExtrinsicObject", 1)[1].split(b"<ExtrinsicObject", 1)[0]
    both = one["METADATA.XML"].replace(
        b"<ExtrinsicObject", b"<ExtrinsicObject" + second + b"<ExtrinsicObject", 1
    )
    held = {**one, "METADATA.XML": both, "KOS_1_2.DCM": two["KOS_1_1.DCM"], "KOS_1_3.DCM": b"nothing"}
    found = check_set(held)
    assert [type(each) for each in found] == [TakenKos, TakenKos, RefusedKos]
    for each, uid in zip(found, ("2.25.5001", "2.25.5002"), strict=False):
        assert isinstance(each, TakenKos)
        assert each.entry.unique_id == uid
        assert each.metadata.count(b"application/dicom") == 1
        # Nothing is left that speaks of the other.
        other = "2.25.5002" if uid == "2.25.5001" else "2.25.5001"
        assert metadata.own_uuid(other).encode() not in each.metadata


def test_a_whole_soap_message_and_its_bare_request_are_the_same() -> None:
    held = files()
    bare = held["METADATA.XML"].partition(b"?>\n")[2]
    soap = (
        b'<soap:Envelope xmlns:soap="http://www.w3.org/2003/05/soap-envelope"><soap:Header><a/></soap:Header>'
        b'<soap:Body><x:Provide xmlns:x="urn:ihe:iti:xds-b:2007">'
        + bare
        + b"</x:Provide></soap:Body></soap:Envelope>"
    )
    (found,) = check_set({**held, "METADATA.XML": soap})
    (plain,) = check_set(held)
    assert found == plain


def test_what_is_kept_in_the_store_is_read_back() -> None:
    found = taken()
    raw = pack(found, found.reports[0])
    assert raw == pack(found, found.reports[0])
    assert checking.is_packed(raw)
    assert unpack(raw) == found
    assert unpack(pack(found, None)).reports == ()
    with pytest.raises(opening.FileRefused):
        unpack(raw[:-40])


# --- what it once came from -------------------------------------------------------------------------


def test_the_report_and_the_submission_are_made_again() -> None:
    one = published()
    found = taken(one)
    was, now = one.submission, rebuilding.submission_of(found, found.reports[0], "1999999999")
    report, original = now.report, was.report
    assert report.patient == original.patient
    assert report.requests == original.requests
    assert report.legal_authenticator == original.legal_authenticator
    assert (report.facility_type, report.language) == (original.facility_type, original.language)
    assert report.document_id == original.document_id
    (act,) = report.acts
    assert [code.value for code in act.modalities] == ["CT"]
    assert [code.value for code in act.regions] == ["69536005"]
    assert act.description == original.acts[0].description
    assert now.visibility == Visibility(hidden_from_patient=True)
    assert (now.submission_uid, now.signature_uid) == (was.submission_uid, was.signature_uid)
    assert (now.kos, now.patient_class) == (was.kos, "O")
    assert now.submission_time == was.submission_time.replace(microsecond=0)
    assert reading.read_manifest(was.kos).study_uid == now.study.study_uid
    assert [series.series_uid for series in now.study.series] == ["2.25.11"]
    assert now.study.instance_uids == was.study.instance_uids


@pytest.mark.parametrize("digits", ["00010101000000", "99991231235959", "20261399999999", "", "x"])
def test_an_instant_that_is_none_breaks_nothing(digits: str) -> None:
    found = taken()
    odd = attrs.evolve(
        found,
        submission_set=attrs.evolve(found.submission_set, submission_time=digits),
        entry=attrs.evolve(found.entry, submission_time=digits, creation_time=digits),
    )
    # What the manifest itself says is left.
    assert rebuilding.submitted_at(odd) == CREATED.replace(microsecond=0)
    record = takeover(odd, site="site1", structure_id="1", month=None)
    assert record.published_at == CREATED.replace(microsecond=0)


@pytest.mark.parametrize("times", ["utc", "local"])
def test_instants_are_read_in_the_zone_they_were_written_in(times: str) -> None:
    created = datetime(2026, 1, 31, 23, 45, 10, tzinfo=timezone(timedelta(hours=1)))
    from drimbox.xds.metadata import submission_metadata
    from drimbox.xds.sender import Sender
    from tests.source.fakes import config, structure

    one = published(created=created)
    zoned = attrs.evolve(config().dmp, times=times)
    text = submission_metadata(Sender(config().drimbox, zoned, structure()), one.submission, b"")
    found = taken(Published(one.submission, text))
    assert rebuilding.submitted_at(found) == created


@pytest.mark.parametrize(
    ("instant", "wanted"),
    [
        (datetime(2026, 1, 15, 12, tzinfo=UTC), datetime(2026, 1, 15, 12, tzinfo=UTC)),
        (datetime(2025, 12, 31, 12, tzinfo=UTC), datetime(2026, 1, 1).astimezone()),
        (datetime(2026, 2, 3, 12, tzinfo=UTC), datetime(2026, 1, 31, 23, 59, 59).astimezone()),
    ],
)
def test_it_stays_in_the_month_it_was_filed_in(instant: datetime, wanted: datetime) -> None:
    assert within(instant, Month(2026, 1)) == wanted


def test_every_report_has_its_message() -> None:
    one = published()
    with_two = attrs.evolve(taken(one), reports=(*taken(one).reports, *taken(published(2)).reports))
    record = takeover(with_two, site="site1", structure_id="1999999999", month=Month(2026, 1))
    assert [document for document, _ in record.messages] == ["2.25.901", "2.25.902"]
    for document, raw in record.messages:
        assert [line.document_id for line in unpack(raw).reports] == [document]


@pytest.mark.requirement("DB.SO.30")
def test_the_published_sample_of_the_agency_is_taken() -> None:
    folder = published_samples() / "XDM" / "KA202401"
    if not folder.exists():
        pytest.skip("the agency's samples are not here")
    with opening.open_archive(folder) as archive:
        (name,) = archive.sets
        (found,) = check_set(archive.files(name))
    assert isinstance(found, TakenKos)
    assert found.warnings == ()
    report = rebuilding.report_of(found, found.reports[0])
    assert report.document_id == "1.2.250.1.213.1.1.6^A7102400008_6"
    assert (report.patient.family, report.patient.given) == ("PAT-SIX", "Alain")
    assert report.structure.id == "499700367909006"
    assert [code.value for code in report.acts[0].modalities] == ["MR"]
    assert report.requests[0].accession.value == "725229536725002"
    assert report.ipp is not None
    assert rebuilding.submitted_at(found).isoformat() == "2024-01-16T15:11:12+02:00"


def test_samples_and_builders_agree() -> None:
    assert taken().entry.patient.value == samples.INS
