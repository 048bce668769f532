"""What a Consumer receives over real sockets is what the PACS holds, as it comes, for the right patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from drimbox.sim.consumer import LOSSY, accept_headers
from drimbox.sim.studies import SimPatient, make_study
from drimbox.sim.study_objects import add_key_objects, add_pdf, add_presentation_state, add_report
from tests.integration.hospital import (
    ACCEPT,
    ANY,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_LS,
    Hospital,
    Served,
    behave,
    data_set,
    digests,
    read,
    received,
)
from tests.integration.waiting import until


@pytest.mark.requirement("DB.SO.32", "DB.SO.173", "DB.SO.177", "DB.SO.154", "DB.SO.111", "DB.SO.46")
@pytest_twisted.ensureDeferred
async def test_a_series_arrives_byte_for_byte(hospital: Hospital, scanner: Served) -> None:
    before = hospital.audited()
    result = await hospital.fetch(scanner)
    assert (result.status, result.complete, result.error) == (200, True, "")
    assert received(result) == digests(scanner.study)
    assert {part.transfer_syntax for part in result.parts} == {JPEG_LS}
    assert result.header("cache-control") == "no-store"
    assert "Twisted" not in str(result.headers)
    ids = [part.headers["content-id"] for part in result.parts]
    assert ids == [f"<{n}@{hospital.stand.sites[0]}>" for n in (1, 2, 3)]
    record = await hospital.audit_after(before)
    assert record.outcome == 0
    assert record.study_uid == scanner.uid


@pytest.mark.requirement("DB.SO.32")
@pytest_twisted.ensureDeferred
async def test_each_series_holds_its_own_images(hospital: Hospital, scanner: Served) -> None:
    for number in (0, 1):
        assert received(await hospital.fetch(scanner, number)) == digests(scanner.study, number)


@pytest.mark.requirement("DB.SO.32")
@pytest_twisted.ensureDeferred
async def test_native_explicit_arrives_byte_for_byte(hospital: Hospital, other: Served) -> None:
    result = await hospital.fetch(other)
    assert result.complete
    assert received(result) == digests(other.study)


@pytest.mark.requirement("DB.SO.41")
@pytest_twisted.ensureDeferred
async def test_implicit_arrives_as_the_explicit_that_pydicom_reads(
    hospital: Hospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=2, transfer_syntax=IMPLICIT_LE, seed=21)
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    result = await hospital.fetch(served)
    assert result.complete
    assert {part.transfer_syntax for part in result.parts} == {EXPLICIT_LE}
    held = {str(i.sop_instance_uid): i.path for i in study.instances}
    for part in result.parts:
        assert part.content is not None
        arrived = read(part.content)
        assert arrived.file_meta.TransferSyntaxUID == EXPLICIT_LE
        stored = read(held[str(arrived.SOPInstanceUID)].read_bytes())
        assert [element.tag for element in arrived] == [element.tag for element in stored]
        for element in stored:
            assert arrived[element.tag].value == element.value, element
            assert arrived[element.tag].VR == element.VR, element


@pytest.mark.requirement("DB.CS.86")
@pytest_twisted.ensureDeferred
async def test_objects_that_are_no_ct_pass_too(hospital: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=1, modality="MR", seed=22)
    for add in (add_report, add_key_objects, add_presentation_state, add_pdf):
        study = add(study)
    served = await hospital.publish(study)
    classes = set()
    for number in range(len(study.series)):
        result = await hospital.fetch(served, number)
        assert result.complete, study.series[number].description
        assert received(result) == digests(study, number)
        assert result.parts[0].content is not None
        classes.add(str(read(result.parts[0].content).SOPClassUID))
    assert len(classes) == 5


@pytest.mark.requirement("DB.SO.32", "DB.SO.100", "DB.SO.113")
@pytest_twisted.ensureDeferred
async def test_an_image_leaves_while_the_pacs_has_the_next_one_still_to_send(
    hospital: Hospital, scanner: Served
) -> None:
    hospital.pacs[0].behaviour = behave(pause=0.5)
    before = len(hospital.pacs[0].seen("stored"))
    arrivals: list[tuple[int, int]] = []

    def on_part(number: int, _: Any) -> None:
        arrivals.append((number, len(hospital.pacs[0].seen("stored")) - before))

    result = await hospital.fetch(scanner, on_part=on_part)
    assert result.complete
    # A part is known whole when the next delimiter comes; its last byte is there before.
    assert arrivals[0] == (0, 1) or arrivals[0][1] <= 2
    assert arrivals[-1][1] == 3
    assert result.t_first_part is not None
    assert result.t_first_part < result.t_total - 0.4


@pytest.mark.requirement("DB.SO.32", "DB.SO.113")
@pytest_twisted.ensureDeferred
async def test_the_first_image_is_at_the_client_before_the_second_is_sent(
    hospital: Hospital, scanner: Served
) -> None:
    hospital.pacs[0].behaviour = behave(pause=2.0)
    before = len(hospital.pacs[0].seen("stored"))
    first = scanner.study.series[0].instances[0]
    expected = data_set(first.path.read_bytes())
    request = hospital.request(scanner, "Connection: close")

    def talk() -> tuple[bool, int]:
        body = b""
        with hospital.connect() as connection:
            connection.sendall(request)
            connection.settimeout(1.5)
            try:
                while data := connection.recv(65536):
                    body += data
                    plain = b"".join(body.split(b"\r\n"))
                    if expected[-64:].replace(b"\r\n", b"") in plain:
                        break
            except TimeoutError:
                return False, 0
            return True, len(hospital.pacs[0].seen("stored")) - before

    there, stored = await deferToThread(talk)
    assert there
    assert stored <= 1


@pytest.mark.requirement("DB.SO.32", "DB.SO.85")
@pytest.mark.parametrize(
    ("accept", "syntax"),
    [
        (accept_headers(), JPEG_LS),
        (accept_headers(LOSSY), JPEG_LS),
        ((ANY,), JPEG_LS),
        (('multipart/related; type="application/dicom"',), EXPLICIT_LE),
        (("*/*",), EXPLICIT_LE),
        ((ACCEPT.format(JPEG_LS) + ";q=0.1, " + ACCEPT.format(EXPLICIT_LE) + ";q=0.9,",), EXPLICIT_LE),
        ((f"transfer-syntax={JPEG_LS};q=0.9;boundary=**",), JPEG_LS),
        ((ANY, ACCEPT.format(JPEG_LS) + "; q=0"), EXPLICIT_LE),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_accept_header_chooses_among_what_the_pacs_proposes(
    hospital: Hospital, scanner: Served, accept: tuple[str, ...], syntax: str
) -> None:
    result = await hospital.fetch(scanner, accept=accept)
    assert result.complete, result
    assert {part.transfer_syntax for part in result.parts} == {syntax}
    assert len(result.parts) == 3


@pytest.mark.requirement("DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_cannot_send_what_we_chose_is_asked_for_another_syntax(
    hospital: Hospital, scanner: Served
) -> None:
    pacs = hospital.pacs[0]
    # It proposes an uncompressed form of what it holds compressed, and fails to make it.
    pacs.behaviour = behave(propose="both", fail=(0, 1, 2))
    before, moves = hospital.audited(), len(pacs.seen("move"))
    accept = (ACCEPT.format(JPEG_LS) + ";q=0.5", ACCEPT.format(EXPLICIT_LE) + ";q=0.9")
    asked = Deferred.fromCoroutine(hospital.fetch(scanner, accept=accept))
    # Explicit first, then Implicit, which would leave as Explicit too, then what it really holds.
    await until(lambda: len(pacs.seen("move")) == moves + 2)
    pacs.behaviour = behave()
    result: Any = await asked
    assert result.complete, result.problem
    assert {part.transfer_syntax for part in result.parts} == {JPEG_LS}
    assert len(pacs.seen("move")) == moves + 3
    assert (await hospital.audit_after(before)).outcome == 0


@pytest.mark.requirement("DB.SO.35", "DB.SO.85")
@pytest.mark.threat("images of another patient")
@pytest_twisted.ensureDeferred
async def test_four_patients_at_once_are_never_mixed(hospital: Hospital, tmp_path: Path) -> None:
    served = []
    for number in range(4):
        patient = SimPatient(id=f"IPP9{number}", name=f"PATIENT^NUMERO{number}")
        study = make_study(
            tmp_path / str(number), instances=8, rows=128, columns=128, patient=patient, seed=30 + number
        )
        served.append(await hospital.publish(study))
    hospital.pacs[0].behaviour = behave(pause=0.2, associations=2, parallel=True)
    for _ in range(2):
        before = len(hospital.pacs[0].seen("move", "final"))
        results = await gatherResults([Deferred.fromCoroutine(hospital.fetch(one)) for one in served])
        # Really at once: one after the other, each would end before the next begins.
        order = [event.kind for event in hospital.pacs[0].seen("move", "final")[before:]]
        assert sorted(order) == ["final"] * 4 + ["move"] * 4
        assert order != ["move", "final"] * 4
        for one, result in zip(served, results, strict=True):
            assert result.complete, result.error
            assert received(result) == digests(one.study)
            for part in result.parts:
                assert read(part.content).PatientID == one.study.patient.id
        # A title is free again an instant after the final response.
        await hospital.idle()


@pytest.mark.requirement("DB.SO.173", "DB.SO.90")
@pytest_twisted.ensureDeferred
async def test_each_name_is_served_by_its_own_pacs(
    hospital: Hospital, scanner: Served, other: Served
) -> None:
    moves = [len(pacs.seen("move")) for pacs in hospital.pacs]
    assert (await hospital.fetch(scanner)).complete
    assert (await hospital.fetch(other)).complete
    assert [len(pacs.seen("move")) for pacs in hospital.pacs] == [moves[0] + 1, moves[1] + 1]
    # The other site knows nothing of this study, whoever asks.
    result = await hospital.fetch(scanner, site=hospital.stand.sites[1])
    assert result.status == 404
    assert result.problem is not None
    assert result.problem["code"] == "E1001"


@pytest_twisted.ensureDeferred
async def test_several_associations_and_repetitions_make_one_answer(
    hospital: Hospital, scanner: Served
) -> None:
    hospital.pacs[0].behaviour = behave(associations=3, parallel=True, repeat=(0, 2))
    result = await hospital.fetch(scanner)
    assert result.complete
    assert len(result.parts) == 3
    assert received(result) == digests(scanner.study)


@pytest_twisted.ensureDeferred
async def test_a_final_response_before_the_last_image_is_no_end(
    hospital: Hospital, scanner: Served
) -> None:
    hospital.pacs[0].behaviour = behave(final="early")
    result = await hospital.fetch(scanner)
    assert result.complete, result.error
    assert received(result) == digests(scanner.study)


@pytest.mark.parametrize("originator", ["absent", "right"])
@pytest_twisted.ensureDeferred
async def test_a_pacs_may_leave_the_originator_out(
    hospital: Hospital, scanner: Served, originator: str
) -> None:
    hospital.pacs[0].behaviour = behave(originator=originator)
    assert (await hospital.fetch(scanner)).complete


@pytest.mark.threat("images of another patient")
@pytest.mark.parametrize("kind", ["study", "series"])
@pytest_twisted.ensureDeferred
async def test_an_intruder_among_the_images_is_never_delivered(
    hospital: Hospital, scanner: Served, kind: str
) -> None:
    hospital.pacs[0].behaviour = behave(intruder=kind, intruder_at=1)
    result = await hospital.fetch(scanner)
    # Refused, the others whole: what the KOS lists is there, and nothing else.
    assert result.complete, result.error
    assert received(result) == digests(scanner.study)


@pytest_twisted.ensureDeferred
async def test_the_connection_serves_one_request_after_the_other(
    hospital: Hospital, scanner: Served
) -> None:
    answer = await hospital.raw(hospital.request(scanner), hospital.request(scanner, "Connection: close"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.endswith(b"--\r\n\r\n0\r\n\r\n")
