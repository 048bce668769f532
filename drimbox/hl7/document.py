"""The report inside a message: which OBX carries it, and its bytes (interfaces.md 1.3, OBX document).

Senders wrap, pad and escape base64 in every way the table lists; all of them are undone here, and what
is then still not base64 is refused, because a report cut or altered on the way must not become a
manifest. The work is done by C functions on whole buffers: the field may be 20 MB long.
"""

from __future__ import annotations

import binascii
import re

from drimbox.hl7.fields import Message, Segment
from drimbox.hl7.refusal import Hl7Refused

#: LOINC code of imaging reports, OBX-3.1.
REPORT_CODE = "18748-4"


def document_segments(message: Message) -> list[Segment]:
    """Return the OBX that announce an imaging report (OBX-3.1 = 18748-4), in order.

    Where some are encapsulated data (`ED`), only those: a text result may bear the same code.
    """
    found = [obx for obx in message.named("OBX") if message.get(obx, 3) == REPORT_CODE]
    return [obx for obx in found if message.get(obx, 2) == "ED"] or found


def obx_location(message: Message, segment: Segment, field: int) -> str:
    """Return the ERR-2 location of a field of `segment`: `OBX^<rank>^<field>`."""
    rank = 1 + list(message.named(segment.name)).index(segment)
    return f"{segment.name}^{rank}^{field}"


def find_document(message: Message) -> tuple[Segment, bytes]:
    """Return the OBX of the report and the report's bytes.

    Of several documents the first one of level 3 (structured) wins, else the first (interfaces.md 1.2).
    Raises `Hl7Refused` AE 101 `OBX^1^5` when there is none or it is empty, AE 102 when its base64 cannot
    be decoded.
    """
    segments = document_segments(message)
    if not segments:
        raise Hl7Refused("AE", "101", "aucun OBX ne porte de compte rendu d'imagerie (18748-4)", "OBX^1^5")
    documents = []
    for segment in segments:
        document = _decode(message, segment)
        # Only the choice between two documents needs their level; the name of the element is enough.
        if len(segments) > 1 and b"structuredBody" in document:
            return segment, document
        documents.append((segment, document))
    return documents[0]


def _decode(message: Message, segment: Segment) -> bytes:
    location = obx_location(message, segment, 5)
    raw, marks = message.raw, message.delimiters
    start, end = segment.span(5)
    end = _until(raw, marks.repetition, start, end)
    cuts = [start - 1]
    while len(cuts) <= 5 and cuts[-1] < end:
        cuts.append(_until(raw, marks.component, cuts[-1] + 1, end))
    if len(cuts) == 2:
        data = raw[start:end]
    elif len(cuts) == 6:
        encoding = raw[cuts[3] + 1 : cuts[4]].strip().lower()
        if encoding not in (b"base64", b""):
            raise Hl7Refused("AE", "102", "le compte rendu n'est pas encodé en base64", f"{location}^1^4")
        data = raw[cuts[4] + 1 : cuts[5]]
    else:
        raise Hl7Refused("AE", "102", "OBX-5 n'a pas les cinq composantes du type ED", location)
    data = strip_base64(data, marks.escape)
    if not data:
        raise Hl7Refused("AE", "101", "le compte rendu est vide", location)
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error:
        raise Hl7Refused("AE", "102", "le compte rendu n'est pas un base64 lisible", location) from None


def _until(raw: bytes, mark: bytes, start: int, end: int) -> int:
    """Return where `mark` first stands between `start` and `end`, or `end`."""
    found = raw.find(mark, start, end)
    return end if found < 0 else found


def strip_base64(data: bytes, escape: bytes) -> bytes:
    """Remove blanks, line ends (also escaped, `\\X0D\\`, `\\.br\\`) and put the padding right."""
    if escape in data:
        mark = re.escape(escape)
        data = re.sub(mark + rb"(?:X(?:0[DdAa9]|20)+|\.br)" + mark, b"", data)
    data = data.translate(None, b" \t\r\n")
    # Only the true end may lack its padding: what follows an inner "=" still fails the strict decoder.
    data = data.rstrip(b"=")
    return data + b"=" * (-len(data) % 4)
