"""Why a message is not taken: the refusal that becomes `MSA` and `ERR` segments (interfaces.md 1.5).

The reader raises it, the acknowledgement writes it, the use-case counts it. `err_text` is read by the
people who run the RIS: French, and never a value of the message, because it also ends in logs.
"""

from __future__ import annotations

from typing import Final

#: HL70357, messageErrorCondition.
ERROR_TEXTS: Final = {
    "0": "Message accepted",
    "100": "Segment sequence error",
    "101": "Required field missing",
    "102": "Data type error",
    "103": "Table value not found",
    "198": "Non-conformant cardinality",
    "199": "Other HL7 syntax error",
    "200": "Unsupported message type",
    "201": "Unsupported event code",
    "202": "Unsupported processing id",
    "203": "Unsupported version id",
    "207": "Application error",
}

#: applicationErrorCondition of CISIS3, the values this gateway sends.
APPLICATION_TEXTS: Final = {
    "906": "Autre",
}

#: Label and log name of a sender that is not known, or not yet.
UNKNOWN_RIS = "unknown"


class Hl7Refused(Exception):
    """A message the gateway refuses to take.

    `ack_code`: `AE` (wrong, do not resend unchanged) or `AR` (resend later). `err_code`: HL70357.
    `err_text`: French sentence for ERR-8. `location`: `SEG^seq^field[^rep[^comp]]` or empty.
    `application_code`: code of ERR-5, empty for none.
    """

    def __init__(
        self, ack_code: str, err_code: str, err_text: str, location: str = "", application_code: str = ""
    ) -> None:
        super().__init__(err_text)
        self.ack_code = ack_code
        self.err_code = err_code
        self.err_text = err_text
        self.location = location
        self.application_code = application_code

    def __str__(self) -> str:
        where = f" ({self.location})" if self.location else ""
        return f"{self.ack_code} {self.err_code}{where} : {self.err_text}"


def contradiction(err_text: str, location: str) -> Hl7Refused:
    """Make the refusal of a message that says two things at once: AE, 207 + 906 (interfaces.md 1.2)."""
    return Hl7Refused("AE", "207", err_text, location, "906")


#: The answer to a message that met a bug of ours: the sender keeps it, so nothing is lost.
INTERNAL_ERROR: Final = Hl7Refused("AR", "207", "erreur interne, renvoyer le message plus tard", "", "906")
