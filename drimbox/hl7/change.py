"""Reading of OMI^O23: a PACS tells that a study changed (DB.SO.133, interfaces.md 1.6).

Only the StudyInstanceUIDs count. What happened to the study, and to whom it belongs, the message tells
badly (ORC-1, OBX, a poor PID): the C-FIND that follows decides.
"""

from __future__ import annotations

from drimbox.hl7.fields import Message
from drimbox.hl7.refusal import Hl7Refused
from drimbox.model import StudyChange, is_uid

#: Studies one message may name.
MAX_STUDIES = 100


def study_change(message: Message, control_id: str) -> StudyChange:
    """Return which studies changed, each once.

    Raises `Hl7Refused`: AE 101 when none is named, 102 for an IPC-3 that is no UID, 198 for too many.
    """
    studies: dict[str, None] = {}
    for number, segment in enumerate(message.named("IPC"), 1):
        value = message.get(segment, 3)
        if not value:
            continue
        if not is_uid(value):
            raise Hl7Refused("AE", "102", "IPC-3 n'est pas un StudyInstanceUID", f"IPC^{number}^3")
        studies[value] = None
        if len(studies) > MAX_STUDIES:
            raise Hl7Refused(
                "AE", "198", f"plus de {MAX_STUDIES} examens dans un message", f"IPC^{number}^3"
            )
    if not studies:
        raise Hl7Refused("AE", "101", "StudyInstanceUID absent (IPC-3)", "IPC^1^3")
    return StudyChange(control_id, tuple(studies))
