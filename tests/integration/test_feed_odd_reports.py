"""Odd but real reports over a real MLLP socket, to the KOS in the DMP (interfaces.md 1.1 to 1.5)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.model import MessageAction
from drimbox.sim.dmp_registry import Entry
from drimbox.sim.ris import SimAct, SimMessage, SimReport, build_cda, build_message
from drimbox.sim.studies import GeneratedStudy
from tests.cda.samples import published
from tests.integration.feed_stand import (
    OnePacs,
    SimOrder,
    held_instances,
    kos_dataset,
    kos_instances,
    one_pacs,
)
from tests.integration.waiting import until

pytestmark = pytest.mark.requirement("DB.SO.03", "DB.SO.11", "DB.SO.12", "DB.SO.141")
CONFIDENTIALITY = "urn:uuid:f4f85eac-e6cb-4883-b524-f2705394840f"
NAME = "D'ÉVÊQUE-LŒÜ"
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnePacs]:
    with one_pacs(tmp_path_factory.mktemp("odd")) as found:
        yield found


_numbers = iter(range(7000, 10**6))


def report_on(*studies: GeneratedStudy, number: int, **changes: Any) -> SimReport:
    acts = tuple(SimAct(study_uid=each.study_uid, modalities=("CT",)) for each in studies)
    document = f"2.999.7.{number}"
    report = SimReport(
        acts=acts, document_id=document, set_id=document, family=NAME, structure_name="L'HÔPITAL"
    )
    return attrs.evolve(report, **changes)


def codes(entry: Entry) -> set[str]:
    """Return the confidentialityCodes of an entry."""
    return {code.code for code in entry.metadata.classified(CONFIDENTIALITY)}


def wrapped(document: bytes, width: int, between: str) -> str:
    text = base64.b64encode(document).decode()
    return between.join(text[i : i + width] for i in range(0, len(text), width))


Document = Callable[[bytes], bytes]
Raw = Callable[[bytes], bytes]


def same(data: bytes) -> bytes:
    return data


def replaced(old: bytes, new: bytes) -> Raw:
    def change(raw: bytes) -> bytes:
        assert old in raw, old
        return raw.replace(old, new, 1)

    return change


@attrs.frozen
class Odd:
    """How a message is odd: keys of `SimMessage`, what is done to the CDA, to OBX-5, to the raw message."""

    message: dict[str, Any] = attrs.field(factory=dict)
    document: Document = same
    field: Callable[[bytes], str] | None = None
    raw: Raw = same
    ack: str = "AA"


def _prolog(text: bytes) -> Document:
    return lambda cda: cda.replace(b"?>\n", b"?>\n" + text, 1)


def _declared(encoding: str) -> Document:
    return lambda cda: cda.decode().replace("UTF-8", encoding, 1).encode(encoding)


ODD: dict[str, Odd] = {
    "LF": Odd({"terminator": "\n"}),
    "CRLF": Odd({"terminator": "\r\n", "kind": "MDM"}),
    "blank lines and no last terminator": Odd(
        raw=lambda raw: b"\r\n" + raw.replace(b"\rPV1", b"\r\r\nPV1").rstrip(b"\r")
    ),
    "8859/1 over UTF-8": Odd({"charset": "8859/1"}),
    "UTF-8 over 8859/15": Odd({"encoding": "iso8859-15"}),
    "8859/15": Odd({"charset": "8859/15", "encoding": "iso8859-15"}),
    "no character set": Odd({"charset": ""}),
    "unknown character set": Odd({"charset": "UNICODE UTF-32"}),
    "wrapped at 76": Odd({"wrap": 76}),
    "wrapped at 76, LF": Odd({"wrap": 76, "terminator": "\n", "kind": "MDM"}),
    "blanks in the base64": Odd(field=lambda cda: "^TEXT^XML^Base64^" + wrapped(cda, 60, "  ")),
    "escaped line ends": Odd(field=lambda cda: "^TEXT^XML^Base64^" + wrapped(cda, 64, "\\X0D\\\\X0A\\")),
    "padding lacking": Odd(
        document=lambda cda: cda + b" " * ((1 - len(cda)) % 3),
        field=lambda cda: "^text^xml^base64^" + base64.b64encode(cda).decode().rstrip("="),
    ),
    "bare base64": Odd(field=lambda cda: base64.b64encode(cda).decode()),
    "BOM": Odd(document=lambda cda: BOM + cda),
    "BOM and blanks": Odd(document=lambda cda: b"\r\n" + BOM + b"\r\n" + cda),
    "processing instructions and comments": Odd(
        document=_prolog(
            b'<?xml-stylesheet type="text/xsl" href="cda.xsl"?>\n<!-- <ClinicalDocument> -->\n'
        )
    ),
    "CDA in 8859/15": Odd(document=_declared("ISO-8859-15")),
    "CDA in UTF-16": Odd(document=_declared("UTF-16")),
    "stray continuation line": Odd(
        raw=replaced(b"OBR|1|", b"NTE|1||texte\r|suite de la ligne\nencore|\rOBR|1|")
    ),
    "segments of others": Odd(raw=replaced(b"PV1|1|", b"ZXX|a|b\rPD1|||x\rPV1|1|")),
    "trailing NTE": Odd(raw=lambda raw: raw + b"NTE|1|||FIN\r"),
    "MSH-9 of two components": Odd({"message_type": "ORU^R01"}),
    "version 2.3.1": Odd({"version": "2.3.1"}),
    "no date in MSH-7": Odd({"sent_at": "AAAAMMJJ"}),
    "ORC-1 SC": Odd({"order_control": "SC"}),
    "no IPP in PID-3": Odd({"with_ipp": False}),
    "no PRT": Odd({"prt_structure": ""}),
    "bare flags": Odd(raw=lambda raw: raw.replace(b"Y^^expandedYes-NoIndicator", b"Y")),
    "lower-case flags": Odd(
        raw=lambda raw: raw.replace(b"||Y^^", b"||y^^").replace(b"DESTDMP", b"destdmp")
    ),
    "accept acknowledgement always": Odd({"accept_ack": "AL", "application_ack": "NE"}, ack="CA"),
    "accept acknowledgement on success": Odd({"accept_ack": "SU", "kind": "MDM"}, ack="CA"),
    "both never": Odd({"accept_ack": "NE", "application_ack": "NE"}),
    "other delimiters": Odd(raw=lambda raw: raw.replace(b"|", b"#").replace(b"MSH#^~\\&", b"MSH#^~\\&", 1)),
}


@pytest.mark.parametrize("name", ODD)
@pytest_twisted.ensureDeferred
async def test_an_odd_but_real_report_is_published_like_any_other(world: OnePacs, name: str) -> None:
    odd, number = ODD[name], next(_numbers)
    study = world.studies.new(world.pacs)
    document = odd.document(build_cda(report_on(study, number=number)))
    message = SimMessage(
        control_id=f"M{number}",
        document_field=None if odd.field is None else odd.field(document),
        **odd.message,
    )
    ack = await world.stand.send(
        odd.raw(build_message(report_on(study, number=number), message, document=document))
    )
    assert (ack.code, ack.control_id) == (odd.ack, f"M{number}")
    entry = await world.stand.published_one(study)
    assert kos_instances(entry) == held_instances(study)
    dataset = kos_dataset(entry)
    assert str(dataset.PatientName) == f"{NAME}^CLAIRE"
    assert codes(entry) == {"N"}
    assert world.stand.query("SELECT state, result FROM inbox ORDER BY id DESC LIMIT 1") == [
        ("done", "feed")
    ]


@pytest.mark.parametrize(
    ("flag", "code"),
    [
        ("MASQUE_PS", "MASQUE_PS"),
        ("INVISIBLE_PATIENT", "INVISIBLE_PATIENT"),
        ("INVISIBLE_REP_LEGAUX", "INVISIBLE_REPRESENTANTS_LEGAUX"),
        ("INVISIBLE_REPRESENTANTS_LEGAUX", "INVISIBLE_REPRESENTANTS_LEGAUX"),
        ("INVISIBLE_REPRENSANTS_LEGAUX", "INVISIBLE_REPRESENTANTS_LEGAUX"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_spelling_of_a_flag_hides_the_kos(world: OnePacs, flag: str, code: str) -> None:
    study = world.studies.new(world.pacs)
    flags: dict[str, str | None] = {flag: "Y"}
    if flag not in ("MASQUE_PS", "INVISIBLE_PATIENT"):
        flags = {"INVISIBLE_REP_LEGAUX": None, **flags}
    await world.stand.report(study, flags=flags)
    assert codes(await world.stand.published_one(study)) == {"N", code}


@pytest.mark.parametrize("mode", ["", "AL"])
@pytest.mark.parametrize(
    "message",
    [
        {"order_control": "NW", "status": "C"},
        {"kind": "MDM", "action": MessageAction.NEW, "order_control": "CA", "status": ""},
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_contradiction_is_refused_at_the_door(
    world: OnePacs, message: dict[str, Any], mode: str
) -> None:
    study = world.studies.new(world.pacs)
    before = world.stand.query("SELECT count(*) FROM inbox")
    raw = world.stand.message(study, number=next(_numbers), accept_ack=mode, **message)
    ack = await world.stand.send(raw)
    assert ack.code == ("CE" if mode else "AE")
    assert [(each.code, each.application_code) for each in ack.errors] == [("207", "906")]
    await world.stand.idle()
    assert world.stand.query("SELECT count(*) FROM inbox") == before
    assert world.stand.kos(study, None) == []


@pytest.mark.parametrize("first_level", [1, 3])
@pytest_twisted.ensureDeferred
async def test_of_two_documents_the_structured_one_feeds(world: OnePacs, first_level: int) -> None:
    flat, structured = world.studies.new(world.pacs), world.studies.new(world.pacs)
    number = next(_numbers)
    one = report_on(flat, number=number, level=1)
    three = report_on(structured, number=next(_numbers), level=3)
    first, second = (one, three) if first_level == 1 else (three, one)
    raw = build_message(first, SimMessage(control_id=f"M{number}"))
    more = (
        b"OBX|2|ED|18748-4^CR^LN||^TEXT^XML^Base64^" + base64.b64encode(build_cda(second)) + b"||||||F|\r"
    )
    ack = await world.stand.send(raw + more)
    assert ack.code == "AA"
    await world.stand.published_one(structured)
    assert world.stand.kos(flat, None) == []


@pytest_twisted.ensureDeferred
async def test_the_published_report_gives_its_three_kos(world: OnePacs) -> None:
    """The agency's level-1 report as it is, but for the structure, whose certificates nobody has."""
    document = published("CDA/IMG_CR_IMG_2023.11_CDA-R2-Niveau-1.xml")
    document = document.replace(b'extension="101235555"', b'extension="1999999999"')
    uids = [f"1.2.250.1.3.152.235.2.12.18763647{last}" for last in (4, 5, 6)]
    studies = [world.studies.new(world.pacs, study_uid=uid) for uid in uids]
    message = SimMessage(control_id="M-ANS", with_ipp=False, prt_structure="")
    # Its patient is not the one of the simulated PID: the INS is that of the report.
    raw = build_message(SimReport(ins=""), message, document=document)
    assert (await world.stand.send(raw)).code == "AA"
    for study in studies:
        entry = await world.stand.published_one(study)
        dataset = kos_dataset(entry)
        assert (dataset.PatientID, str(dataset.PatientName)) == ("279035121518989", "PAT-TROIS^DOMINIQUE")
        assert _numbers_of(entry) == ["105234751"]
        assert kos_instances(entry) == held_instances(study)


@pytest_twisted.ensureDeferred
async def test_the_published_message_is_taken_and_told_what_it_lacks(world: OnePacs) -> None:
    """LF line ends, a line broken inside an OBX, bare base64, 8859/1 over UTF-8: taken, then E005."""
    raw = published("HL7/patient1.hl7").replace(b"|FILLER|FILLER|", b"|RIS-Y|FILLER|", 1)
    assert (await world.stand.send(raw)).code == "AA"
    text = await world.stand.notice_about("modalité", "E005")
    assert "situation d'exercice" in text
    await world.stand.idle()


@pytest_twisted.ensureDeferred
async def test_mdm_t11_withdraws_like_t04(world: OnePacs) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    number = await stand.report(study, kind="MDM")
    await stand.published_one(study)
    document = {"document_id": f"2.999.7.{number}", "set_id": f"2.999.7.{number}"}
    cancel = {"kind": "MDM", "message_type": "MDM^T11", "order_control": "", "status": ""}
    await stand.report(study, report=document, **cancel)
    await until(lambda: not stand.kos(study), what="no KOS in the DMP")
    await stand.idle()


# -- visibility, second readings, several numbers ---------------------------------------------------------


@pytest.mark.requirement("DB.SO.97", "DB.SO.13")
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest.mark.parametrize("form", ["replacement", "same report"])
@pytest_twisted.ensureDeferred
async def test_a_visibility_change_replaces_the_kos_in_both_forms(
    world: OnePacs, kind: str, form: str
) -> None:
    """As a replacing report with a new id, or the unchanged one once more (interfaces.md 1.4)."""
    stand = world.stand
    study = world.studies.new(world.pacs)
    number = await stand.report(study, kind=kind)
    first = await stand.published_one(study)
    assert codes(first) == {"N"}
    hidden = {"MODIF_CONF_CODE": "Y", "MASQUE_PS": "Y", "INVISIBLE_PATIENT": "Y"}
    same_id = {"document_id": f"2.999.7.{number}", "set_id": f"2.999.7.{number}"}
    change: dict[str, Any] = {"report": same_id, "action": MessageAction.NEW}
    if form == "replacement":
        change = {"report": {"replaces": f"2.999.7.{number}"}, "action": MessageAction.REPLACE}
    later = {"kind": kind, "sent_at": "20260112094500"}
    await stand.report(study, flags=hidden, **change, **later)
    await until(lambda: first.unique_id not in [each.unique_id for each in stand.kos(study)])
    second = await stand.published_one(study)
    assert codes(second) == {"N", "MASQUE_PS", "INVISIBLE_PATIENT"}
    assert kos_instances(second) == kos_instances(first)
    assert [each.unique_id for each in stand.kos(study, "Deprecated")] == [first.unique_id]
    if form == "same report":
        # And shown again.
        await stand.report(
            study, flags={"MODIF_CONF_CODE": "Y"}, report=same_id, kind=kind, sent_at="20260112100000"
        )
        await until(lambda: second.unique_id not in [each.unique_id for each in stand.kos(study)])
        assert codes(await stand.published_one(study)) == {"N"}


@pytest.mark.requirement("DB.SO.105", "DB.SO.13")
@pytest_twisted.ensureDeferred
async def test_a_second_reading_has_its_own_accession_number_and_several_are_all_kept(
    world: OnePacs,
) -> None:
    stand = world.stand
    first, second = world.studies.new(world.pacs), world.studies.new(world.pacs)
    both = (SimOrder("ACC-A", order="1"), SimOrder("ACC-B", order="2"))
    await stand.report(first, second, report={"orders": both})
    for study in (first, second):
        assert _numbers_of(await stand.published_one(study)) == ["ACC-A", "ACC-B"]
    untouched = stand.kos(second)[0].unique_id
    # Read again elsewhere, for another request: the numbers of the KOS are brought up to date.
    await stand.report(first, report={"orders": (SimOrder("ACC-2ND", order="77"),)}, sent_at="20260113")
    await until(lambda: [each for each in stand.kos(first) if _numbers_of(each) == ["ACC-2ND"]])
    await stand.published_one(first)
    assert [each.unique_id for each in stand.kos(second)] == [untouched]


def _numbers_of(entry: Entry) -> list[str]:
    return sorted(str(item.AccessionNumber) for item in kos_dataset(entry).ReferencedRequestSequence)
