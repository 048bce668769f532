"""Hostile senders at the MLLP door: strangers, and a RIS that has been taken over."""

from __future__ import annotations

import random

from drimbox.sim.ris import SimMessage, build_cda, build_message
from tests.integration.hostile.target import Attack, Target, heard, reset

_LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
_XML: tuple[tuple[str, str], ...] = (
    ('<!DOCTYPE c [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "&x;"),
    ('<!DOCTYPE c [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x"> %x;]>', "X"),
    (f'<!DOCTYPE c [<!ENTITY l0 "ha">{_LAUGHS}]>', "&l9;"),
    ('<!DOCTYPE c SYSTEM "http://127.0.0.1:9/cda.dtd">', "X"),
)


def _frame(message: bytes) -> bytes:
    return b"\x0b" + message + b"\x1c\r"


def _say(target: Target, source: str, *pieces: bytes) -> bytes:
    with target.connect(target.hl7, source) as connection:
        return heard(connection, *pieces, end=True, patience=3.0)


def hostile_xml(target: Target, chance: random.Random, source: str) -> None:
    """Reports with entities, and with elements in elements."""
    doctype, use = chance.choice(_XML)
    text = build_cda().decode()
    document = text.replace("<ClinicalDocument", doctype + "<ClinicalDocument").replace("EXEMPLE", use)
    if chance.random() < 0.3:
        document = "<ClinicalDocument>" + "<a>" * 5000 + "</a>" * 5000 + "</ClinicalDocument>"
    message = SimMessage(control_id=f"X{chance.randrange(10**9)}")
    answer = _say(target, source, _frame(build_message(message=message, document=document.encode())))
    assert b"|AA|" not in answer


def framing(target: Target, chance: random.Random, source: str) -> None:
    """Frames in frames, without end, too long, and what is no frame."""
    good = build_message()
    data = chance.choice(
        (
            b"\x0b" + good[:80] + _frame(good),
            b"\x0b" + good.replace(b"\r", b"\x1cX", 1) + b"\x1c\r",
            b"x" * 3000,
            b"\x0b" + b"x" * (3 * 1024 * 1024),
            b"\x0b" + good[: chance.randrange(len(good))],
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
            _frame(b""),
            _frame(chance.randbytes(400).replace(b"\x0b", b"").replace(b"\x1c", b"")),
        )
    )
    assert b"|AA|" not in _say(target, source, data)


def costly(target: Target, chance: random.Random, source: str) -> None:
    """Repetitions, fields and segments that cost a careless reader its time."""
    head = b"MSH|^~\\&|RIS-Y|SITE-X|D|S|2026||ORU^R01^ORU_R01|1|P|2.5\r"
    many = 300_000
    body = chance.choice((b"PID|" + b"~" * many, b"PID" + b"|" * many, b"ZZZ|1\r" * 50_000, b"&" * many))
    assert b"|AA|" not in _say(target, source, _frame(head + body + b"\r"))


def delimiters(target: Target, chance: random.Random, source: str) -> None:
    """Text that would become a segment of our answer, or a line of our log."""
    evil = "1\\X0D\\MSA\\F\\AA\\F\\1"
    message = SimMessage(control_id=evil, application=f"NOBODY\\X0A\\{chance.randrange(99)}")
    answer = _say(target, source, _frame(build_message(message=message)))
    assert b"\rMSA|AA" not in answer


def failing(target: Target, chance: random.Random, source: str) -> None:
    """One connection that fails, for those who count them: no waiting."""
    with target.connect(target.hl7, source) as connection:
        match chance.randrange(4):
            case 0:
                heard(connection, b"x" * 2000, end=True)
            case 1:
                connection.sendall(b"\x0b" + build_message()[: chance.randrange(500)])
            case 2:
                connection.sendall(b"\x0bMSH|")
                reset(connection)
            case _:
                heard(connection, _frame(b"MSH|^~\\&|NOBODY|X|D|S|2026||ORU^R01|1|P|2.5\r"), end=True)


ATTACKS: dict[str, tuple[Attack, ...]] = {
    "XXE, billion laughs, DTD": (hostile_xml,),
    "HL7 and MLLP": (framing, costly, delimiters),
    "log and audit injection, flooding": (delimiters,),
}
