"""Acknowledgements (DB.SO.141, interfaces.md 1.5): what we answer to a message, read or not.

Original mode by default (`AA`, `AE`, `AR`); a message whose MSH-15 asks for an accept acknowledgement
(`AL`, `ER`, `SU`) gets one answer with the commit codes `CA`, `CE`, `CR` (decisions.md). `NE` in both
MSH-15 and 16 is not taken for a wish of silence: DB.SO.141 wants every message acknowledged.

Fields of the message that come back in the answer are taken apart with the sender's delimiters and
written with ours, each piece escaped: nothing a peer writes in MSH-3, 4, 10 or 11 can become a field or a
segment of our answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from drimbox.hl7.fields import Message, codec_of, escape
from drimbox.hl7.message import MAX_CONTROL_ID
from drimbox.hl7.refusal import APPLICATION_TEXTS, ERROR_TEXTS, Hl7Refused

#: Bytes of a message read to answer it: MSH is its first segment.
_HEAD = 16_384
#: Bytes of an application or facility name sent back.
_MAX_NAME = 256

_EVENT = re.compile(r"[A-Z][A-Z0-9]{2}\Z")
_VERSIONS: Final = {"ORU": "2.5", "MDM": "2.6", "OMI": "2.5.1"}
_COMMIT: Final = {"AA": "CA", "AE": "CE", "AR": "CR"}


def acknowledge(
    raw: bytes,
    code: str,
    *,
    now: datetime,
    control_id: str,
    application: str,
    facility: str = "",
    refusals: Sequence[Hl7Refused] = (),
) -> bytes:
    """Return the ACK of the message `raw`, without MLLP framing.

    `code` is `AA`, `AE` or `AR` (translated for enhanced mode). `now` is written as it is in MSH-7,
    `control_id` in MSH-10. `application` and `facility` name us when the message names no receiver.
    One ERR is written for each of `refusals`. Never raises for what `raw` contains: an unreadable
    message is answered with an empty MSA-2.
    """
    incoming = _read_head(raw)
    echo = _Echo(incoming)
    kind, event = echo.text(9, 1), echo.text(9, 2)
    if echo.text(15) in ("AL", "ER", "SU"):
        code = _COMMIT[code]
    charset = echo.text(18)
    codec = codec_of(charset)
    if codec is None:
        charset, codec = "UNICODE UTF-8", "utf-8"
    head = [
        "MSH",
        "^~\\&",
        echo.field(5) or escape(application),
        echo.field(6) or escape(facility),
        echo.field(3),
        echo.field(4),
        now.strftime("%Y%m%d%H%M%S"),
        "",
        f"ACK^{event}^ACK" if _EVENT.match(event) else "ACK",
        escape(control_id),
        echo.field(11) or "P",
        _VERSIONS.get(kind, "2.5"),
        *("", "", "", ""),
        "FRA",
        escape(charset),
    ]
    segments = ["|".join(head), f"MSA|{code}|{echo.control_id()}"]
    segments += [_err(refusal) for refusal in refusals]
    return "".join(f"{segment}\r" for segment in segments).encode(codec, "replace")


def _err(refusal: Hl7Refused) -> str:
    application = refusal.application_code
    fields = [
        "ERR",
        "",
        refusal.location,
        f"{refusal.err_code}^{ERROR_TEXTS.get(refusal.err_code, '')}^messageErrorCondition",
        "E",
        f"{application}^{APPLICATION_TEXTS.get(application, '')}^applicationErrorCondition"
        if application
        else "",
        "",
        "",
        escape(refusal.err_text),
    ]
    return "|".join(fields)


def _read_head(raw: bytes) -> Message | None:
    head = raw[:_HEAD]
    if len(raw) > _HEAD:
        # Stop at a line end, not inside a character.
        head = head[: max(head.rfind(b"\r"), head.rfind(b"\n")) + 1] or head
    try:
        return Message(head)
    except Hl7Refused:
        return None


class _Echo:
    """Fields of the incoming MSH, safe to write in ours; all empty when there is no readable MSH."""

    def __init__(self, message: Message | None) -> None:
        self._message = message

    def text(self, number: int, component: int = 1) -> str:
        """Return a component as plain text, to be compared; empty when it cannot be read."""
        if self._message is None:
            return ""
        try:
            return self._message.get(self._message.msh, number, component)
        except Hl7Refused:
            return ""

    def control_id(self) -> str:
        """Return MSH-10 for MSA-2; empty when it is too long to be one."""
        return self.field(10, MAX_CONTROL_ID * 4) if len(self.text(10)) <= MAX_CONTROL_ID else ""

    def field(self, number: int, limit: int = _MAX_NAME) -> str:
        """Return a whole field rewritten with our delimiters; empty when longer than `limit` bytes."""
        if self._message is None:
            return ""
        try:
            value = self._message.msh.raw_field(number)
        except Hl7Refused:
            return ""
        if len(value) > limit:
            return ""
        marks = self._message.delimiters
        return "~".join(
            "^".join(
                "&".join(escape(self._message.text(atom)) for atom in component.split(marks.subcomponent))
                for component in repetition.split(marks.component)
            )
            for repetition in value.split(marks.repetition)
        )
