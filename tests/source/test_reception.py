"""Reception: who may send, what is refused at the door, and nothing acknowledged before it is safe."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from drimbox.config import (
    Appliance,
    Config,
    DmpSettings,
    Hl7Settings,
    PscSettings,
    Ris,
    TrustSettings,
)
from drimbox.hl7.message import read_report_message
from drimbox.hl7.refusal import Hl7Refused
from drimbox.hl7.server import MllpFactory
from drimbox.metrics import HL7_MESSAGES
from drimbox.model import MessageAction
from drimbox.sim.ris import SimAck, SimMessage, SimReport, build_message, parse_ack, send, send_all
from drimbox.source.precedence import QUIET, Precedence
from drimbox.source.reception import Reception, RisRegister
from drimbox.source.unreadable import Seen
from tests.cda.samples import published

T = TypeVar("T")
NOW = datetime(2026, 1, 12, 10, 15, 2, tzinfo=UTC)
RIS_Y = Ris("ris-y", sending_application="RIS-Y", sending_facility="SITE-X", addresses=("127.0.0.0/8",))


class FixedClock:
    def now(self) -> datetime:
        return NOW


class MemoryInbox:
    def __init__(self, failure: Exception | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.failure = failure
        self.gate: Deferred[None] | None = None

    async def add(self, *, ris: str, peer: str, control_id: str, raw: bytes) -> int:
        if self.gate is not None:
            await self.gate
        if self.failure is not None:
            raise self.failure
        self.rows.append({"ris": ris, "peer": peer, "control_id": control_id, "raw": raw})
        return len(self.rows)


class MemoryNotices:
    def __init__(self, failure: Exception | None = None) -> None:
        self.posted: list[dict[str, str]] = []
        self.failure = failure

    async def post(self, *, key: str, code: str, text: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.posted.append({"key": key, "code": code, "text": text})


async def at_once(work: Callable[[], T]) -> T:
    return work()


def config(*ris: Ris) -> Config:
    here = Path("/nonexistent")
    return Config(
        drimbox=Appliance(here, "349"),
        sites=(),
        ris=ris or (RIS_Y,),
        structures=(),
        trust=TrustSettings(here, here, here),
        dmp=DmpSettings("https://dmp.test", here),
        psc=PscSettings("https://psc.test", "id", here),
        hl7=Hl7Settings(application="DBX", facility="F"),
    )


class Door:
    """A reception with memory behind it."""

    def __init__(
        self, *ris: Ris, inbox: MemoryInbox | None = None, notices: MemoryNotices | None = None
    ) -> None:
        self.inbox = inbox or MemoryInbox()
        self.notices = notices or MemoryNotices()
        self.woken = 0
        #: Reports that were refused, and what telling so ends with.
        self.refused: list[tuple[Seen, str, Hl7Refused]] = []
        self.refused_failure: Exception | None = None
        self.reception = Reception(
            config(*ris),
            self.inbox,
            self.notices,
            FixedClock(),
            at_once,
            stored=self._wake,
            refused=self._refuse,
        )

    async def _refuse(self, seen: Seen, peer: str, refusal: Hl7Refused) -> None:
        self.refused.append((seen, peer, refusal))
        if self.refused_failure is not None:
            raise self.refused_failure

    def _wake(self) -> None:
        self.woken += 1

    def ask(self, raw: bytes, peer: str = "127.0.0.1", shown: Collection[str] = ()) -> SimAck:
        answers: list[bytes] = []
        ensureDeferred(self.reception.receive(raw, peer, shown)).addCallback(answers.append)
        assert answers, "the answer did not come"
        return parse_ack(answers[0])


@pytest.mark.requirement("DB.SO.03", "DB.SO.11", "DB.SO.141")
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest.mark.parametrize("action", list(MessageAction))
@pytest.mark.parametrize("level", [1, 3])
def test_a_report_is_stored_then_acknowledged(kind: str, action: MessageAction, level: int) -> None:
    door = Door()
    raw = build_message(SimReport(level=level), SimMessage(kind=kind, action=action))
    answer = door.ask(raw)
    assert (answer.code, answer.control_id, answer.errors) == ("AA", "015", ())
    assert door.inbox.rows == [{"ris": "ris-y", "peer": "127.0.0.1", "control_id": "015", "raw": raw}]
    assert door.woken == 1
    assert door.notices.posted == []
    assert read_report_message(door.inbox.rows[0]["raw"]).action is action


@pytest.mark.requirement("DB.SO.141")
def test_nothing_is_answered_before_the_commit() -> None:
    door = Door()
    door.inbox.gate = Deferred()
    answers: list[bytes] = []
    ensureDeferred(door.reception.receive(build_message(), "127.0.0.1")).addCallback(answers.append)
    assert answers == []
    door.inbox.gate.callback(None)
    assert parse_ack(answers[0]).code == "AA"


@pytest.mark.requirement("DB.SO.141")
def test_a_store_that_fails_makes_the_ris_send_again() -> None:
    door = Door(inbox=MemoryInbox(OSError("disk full")))
    answer = door.ask(build_message())
    assert (answer.code, answer.control_id) == ("AR", "015")
    assert [(error.code, error.application_code) for error in answer.errors] == [("207", "906")]
    assert door.woken == 0


@pytest.mark.requirement("DB.SO.141")
@pytest.mark.parametrize(
    ("raw", "code", "application", "location"),
    [
        (b"bonjour", "100", "", ""),
        (b"", "100", "", ""),
        (build_message(message=SimMessage(message_type="ADT^A01")), "200", "", "MSH^1^9^1^1"),
        (build_message(message=SimMessage(message_type="ORU^R03")), "201", "", "MSH^1^9^1^2"),
        (build_message(message=SimMessage(with_document=False)), "101", "", "OBX^1^5"),
        (build_message(message=SimMessage(document_field="^TEXT^XML^Base64^***")), "102", "", "OBX^1^5"),
        (build_message(document=b"<ClinicalDocument"), "102", "", "OBX^1^5"),
        (build_message(document=b"%PDF-1.4"), "102", "", "OBX^1^5"),
        (build_message(document=b"<html/>"), "102", "", "OBX^1^5"),
        (build_message(message=SimMessage(status="D")), "207", "906", "OBX^1^11"),
        (build_message(message=SimMessage(version="2.9")), "203", "", "MSH^1^12"),
    ],
)
def test_what_is_refused_at_reception(raw: bytes, code: str, application: str, location: str) -> None:
    door = Door()
    answer = door.ask(raw)
    assert answer.code == "AE"
    (error,) = answer.errors
    assert (error.code, error.application_code, error.location) == (code, application, location)
    assert error.text
    assert answer.control_id == ("" if code == "100" else "015")
    assert door.inbox.rows == []
    (notice,) = door.notices.posted
    assert notice["code"] == "E005"
    assert code in notice["text"]


@pytest.mark.requirement("DB.SO.43", "DB.SO.45")
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
def test_a_refused_report_is_told_with_what_is_known_of_it(kind: str) -> None:
    door = Door()
    door.ask(build_message(document=b"<ClinicalDocument", message=SimMessage(kind=kind)))
    ((seen, peer, refusal),) = door.refused
    assert (seen.ris, seen.trigger, peer, refusal.err_code) == ("ris-y", kind, "127.0.0.1", "102")
    assert seen.message is not None
    assert seen.message.ins is not None
    assert seen.message.ins.value == "284070100499094"
    door.ask(build_message(message=SimMessage(kind=kind, with_document=False)))
    assert door.refused[1][0].message is None


@pytest.mark.requirement("DB.SO.43")
@pytest.mark.parametrize(
    "raw",
    [
        b"bonjour",
        build_message(message=SimMessage(message_type="ADT^A01")),
        build_message(message=SimMessage(application="INCONNU", with_document=False)),
    ],
    ids=["not HL7", "no report", "nobody's"],
)
def test_what_is_no_report_of_a_ris_is_not(raw: bytes) -> None:
    door = Door()
    assert door.ask(raw).code == "AE"
    assert door.refused == []


@pytest.mark.requirement("DB.SO.43", "DB.SO.141")
def test_a_refusal_that_cannot_be_recorded_is_to_come_again() -> None:
    door = Door()
    door.refused_failure = OSError("disk full")
    answer = door.ask(build_message(document=b"<ClinicalDocument"))
    assert (answer.code, answer.errors[0].code) == ("AR", "207")


@pytest.mark.requirement("DB.SO.11", "DB.SO.12")
@pytest.mark.parametrize(
    "raw",
    [
        build_message(SimReport(acts=(), orders=(), ins="", structure_id="", document_id="")),
        build_message(message=SimMessage(flags={"DESTDMP": None})),
        build_message(message=SimMessage(flags={"DESTDMP": "N"})),
        build_message(message=SimMessage(reliability="PROV")),
    ],
    ids=["values missing", "no DESTDMP", "not for the DMP", "INS not qualified"],
)
def test_what_the_feed_must_judge_is_taken(raw: bytes) -> None:
    door = Door()
    assert door.ask(raw).code == "AA"
    assert len(door.inbox.rows) == 1


# --- who may send ----------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.04", "DB.SO.188")
@pytest.mark.parametrize(
    ("application", "facility", "peer", "name"),
    [
        ("A", "X", "10.1.2.3", "a"),
        ("A", "X", "::ffff:10.1.2.3", "a"),
        ("A", "X", "10.2.0.1", None),
        ("B", "anything", "10.2.0.1", "b"),
        ("B", "X", "10.2.0.1", "b-x"),
        ("Z", "Z", "192.0.2.9", "by address"),
        ("Z", "Z", "2001:db8::9", "by address"),
        ("Z", "Z", "192.0.2.10", None),
        ("Z", "Z", "not an address", None),
        ("", "", "10.1.2.3", None),
    ],
)
def test_a_ris_is_recognised_by_name_and_address(
    application: str, facility: str, peer: str, name: str | None
) -> None:
    register = RisRegister(
        (
            Ris("b", sending_application="B"),
            Ris("b-x", sending_application="B", sending_facility="X"),
            Ris("a", sending_application="A", addresses=("10.1.0.0/16",)),
            Ris("by address", addresses=("192.0.2.9", "2001:db8::/32")),
        )
    )
    found = register.find(application, facility, peer)
    assert (found.name if found else None) == name


@pytest.mark.requirement("DB.SO.04")
@pytest.mark.parametrize(
    ("application", "shown", "name"),
    [
        ("A", ("ris-a.hopital",), "a"),
        ("A", ("second.hopital", "other"), "a"),
        ("A", ("ris-a.hopital.example",), None),
        ("A", (), None),
        # The certificate of another opens the door, and makes nobody of the one it names.
        ("A", ("ris-b.hopital",), None),
        ("B", ("ris-a.hopital",), None),
        ("B", ("ris-b.hopital",), "b"),
        ("C", ("ris-a.hopital",), "any"),
        ("C", (), "any"),
    ],
)
def test_a_ris_is_held_to_its_certificate(
    application: str, shown: tuple[str, ...], name: str | None
) -> None:
    register = RisRegister(
        (
            Ris("any", sending_application="C"),
            Ris("a", sending_application="A", certificate_names=("RIS-A.hopital", "Second.Hopital")),
            Ris("b", sending_application="B", certificate_names=("ris-b.hopital",)),
        )
    )
    found = register.find(application, "X", "127.0.0.1", shown)
    assert (found.name if found else None) == name


@pytest.mark.requirement("DB.SO.04")
def test_the_more_precise_of_two_ris_is_the_one_whose_certificate_is_named() -> None:
    register = RisRegister((Ris("any"), Ris("held", certificate_names=("ris.hopital",))))
    found = register.find("X", "Y", "127.0.0.1", ("ris.hopital",)), register.find("X", "Y", "127.0.0.1")
    assert [each and each.name for each in found] == ["held", "any"]


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.requirement("DB.SO.04")
def test_the_administrator_is_told_which_certificate_a_refused_sender_showed() -> None:
    door = Door(attrs.evolve(RIS_Y, certificate_names=("ris-y.hopital",)))
    shown = frozenset({f"ris-{at}.hopital" for at in range(9)} | {"\x1b\x07", "a" * 500})
    answer = door.ask(build_message(), shown=shown)
    assert (answer.code, answer.errors[0].location) == ("AE", "MSH^1^3")
    text = door.notices.posted[0]["text"]
    assert "(certificat « aaaa" in text
    assert "« ris-0.hopital »" in text
    assert "\x1b" not in text
    assert len(text) < 500
    assert door.inbox.rows == []
    assert door.ask(build_message(), shown={"ris-y.hopital"}).code == "AA"


@pytest.mark.requirement("DB.SO.04")
def test_messages_of_several_ris_are_told_apart() -> None:
    door = Door(RIS_Y, Ris("ris-z", sending_application="RIS-Z"))
    door.ask(build_message())
    door.ask(build_message(message=SimMessage(application="RIS-Z^1.2^ISO")), "198.51.100.7")
    assert [row["ris"] for row in door.inbox.rows] == ["ris-y", "ris-z"]


@pytest.mark.requirement("DB.SO.04")
@pytest.mark.parametrize(
    ("message", "peer"),
    [
        (SimMessage(application="AUTRE"), "127.0.0.1"),
        (SimMessage(facility="AUTRE"), "127.0.0.1"),
        (SimMessage(), "192.0.2.1"),
    ],
    ids=["application", "facility", "address"],
)
def test_an_unknown_sender_is_refused_and_the_administrator_told(message: SimMessage, peer: str) -> None:
    door = Door()
    answer = door.ask(build_message(message=message), peer)
    assert (answer.code, answer.control_id, answer.errors[0].location) == ("AE", "015", "MSH^1^3")
    assert "émetteur inconnu" in answer.errors[0].text
    assert door.inbox.rows == []
    (notice,) = door.notices.posted
    assert notice["key"] == f"hl7-sender:{peer}"
    assert peer in notice["text"]


@pytest.mark.threat("log and audit injection, flooding")
def test_what_an_unknown_sender_calls_itself_is_made_fit_to_be_shown() -> None:
    door = Door()
    name = "A\x1b[31m" + "B" * 500
    door.ask(build_message(message=SimMessage(application=name)))
    text = door.notices.posted[0]["text"]
    assert "\x1b" not in text
    assert len(text) < 300


def test_an_unknown_sender_is_refused_before_its_document_is_looked_at() -> None:
    door = Door()
    raw = build_message(
        message=SimMessage(application="AUTRE", message_type="ADT^A01", with_document=False)
    )
    assert "émetteur inconnu" in door.ask(raw).errors[0].text


# --- our own trouble -------------------------------------------------------------------------------


def test_a_notice_that_cannot_be_kept_does_not_cost_the_answer() -> None:
    door = Door(notices=MemoryNotices(OSError("disk full")))
    assert door.ask(b"bonjour").code == "AE"


def test_a_feed_that_cannot_be_woken_does_not_cost_the_answer() -> None:
    def broken() -> None:
        raise RuntimeError("bug")

    inbox = MemoryInbox()
    reception = Reception(config(), inbox, MemoryNotices(), FixedClock(), at_once, stored=broken)
    answers: list[bytes] = []
    ensureDeferred(reception.receive(build_message(), "127.0.0.1")).addCallback(answers.append)
    assert parse_ack(answers[0]).code == "AA"


def test_a_bug_of_ours_leaves_the_message_with_the_sender() -> None:
    async def broken(work: Callable[[], T]) -> T:
        raise RuntimeError("bug")

    reception = Reception(config(), MemoryInbox(), MemoryNotices(), FixedClock(), broken)
    answers: list[bytes] = []
    ensureDeferred(reception.receive(build_message(), "127.0.0.1")).addCallback(answers.append)
    assert (parse_ack(answers[0]).code, parse_ack(answers[0]).control_id) == ("AR", "015")


def test_the_feed_is_held_until_the_message_is_answered() -> None:
    clock = Clock()
    precedence = Precedence(clock)
    waits: list[float] = []

    class Watching(MemoryInbox):
        async def add(self, **row: Any) -> int:
            waits.append(precedence.wait())
            return await super().add(**row)

    reception = Reception(
        config(), Watching(), MemoryNotices(), FixedClock(), at_once, precedence=precedence
    )
    answers: list[bytes] = []
    ensureDeferred(reception.receive(build_message(), "127.0.0.1")).addCallback(answers.append)
    assert parse_ack(answers[0]).code == "AA"
    assert waits == [QUIET]
    clock.advance(QUIET)
    assert precedence.wait() == 0.0


def test_answers_are_counted() -> None:
    def count(ris: str, code: str) -> float:
        return HL7_MESSAGES.labels(ris, code)._value.get()

    before = [count("ris-y", "AA"), count("ris-y", "AE"), count("unknown", "AE")]
    door = Door()
    door.ask(build_message())
    door.ask(build_message(message=SimMessage(with_document=False)))
    door.ask(b"bonjour")
    after = [count("ris-y", "AA"), count("ris-y", "AE"), count("unknown", "AE")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]


# --- the whole way, over a socket ------------------------------------------------------------------


def in_thread(work: Callable[[], T]) -> Awaitable[T]:
    return deferToThread(work)


@pytest.mark.requirement("DB.SO.03", "DB.SO.141")
@pytest_twisted.inlineCallbacks
def test_reports_travel_from_a_ris_to_the_inbox() -> Any:
    inbox = MemoryInbox()
    reception = Reception(config(), inbox, MemoryNotices(), FixedClock(), in_thread)
    factory = MllpFactory(Hl7Settings(), reception, reactor, FixedClock().now)  # type: ignore[arg-type]
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]

    async def body() -> None:
        number = port.getHost().port
        messages = [
            build_message(message=SimMessage(control_id="1")),
            build_message(message=SimMessage(control_id="2", with_document=False)),
            build_message(SimReport(level=3), SimMessage(control_id="3", kind="MDM", accept_ack="AL")),
            b"bonjour",
        ]
        answers = await send_all("127.0.0.1", number, messages, 10)
        assert [(answer.code, answer.control_id) for answer in answers] == [
            ("AA", "1"),
            ("AE", "2"),
            ("CA", "3"),
            ("AE", ""),
        ]
        large = build_message(SimReport(pdf_size=11_000_000), SimMessage(control_id="4"))
        assert (await send("127.0.0.1", number, large, 20)).code == "AA"
        assert [row["control_id"] for row in inbox.rows] == ["1", "3", "4"]
        assert inbox.rows[2]["raw"] == large

    try:
        yield ensureDeferred(body())
    finally:
        yield port.stopListening()
        yield ensureDeferred(factory.drain(5))


@pytest.mark.requirement("DB.SO.11", "DB.SO.141")
def test_the_published_message_is_acknowledged() -> None:
    # It lacks values of table 3.1: stored and acknowledged, E005 later (decisions.md).
    door = Door(Ris("poc", sending_application="FILLER"))
    answer = door.ask(published("HL7/patient1.hl7"))
    assert (answer.code, answer.control_id) == ("AA", "104")
    assert len(door.inbox.rows) == 1
