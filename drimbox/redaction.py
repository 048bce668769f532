"""The last defence of the logs: hides what looks like a patient's identifier or a secret.

Pure functions on text. They are applied to every message, field and traceback, and to URLs. They cannot
know a patient's name: names must never be given to a logger at all.
"""

from __future__ import annotations

import re

__all__ = ["escape_control", "redact", "safe_target"]

HIDDEN_INS = "<INS masqué>"
HIDDEN_SECRET = "<masqué>"  # noqa: S105 - what is written in place of a secret

# 15 digits (the department of Corsica has a letter), perhaps grouped as on a social security card. A
# component of a UID is not one: no digit, and no digit and a dot, may touch it.
_GAP = "[ \u00a0]?"
_INS = re.compile(
    r"(?<![0-9])(?<![0-9]\.)"
    + _GAP.join(
        ["[123478]", "[0-9]{2}", "[0-9]{2}", "(?:[0-9]{2}|2[ABab])", "[0-9]{3}", "[0-9]{3}", "[0-9]{2}"]
    )
    + r"(?!\.?[0-9])",
    re.ASCII,
)
_SCHEME = re.compile(r"\b(Bearer|Basic|DPoP)(\s+|%20|\+)[A-Za-z0-9._~+/%=-]{4,}", re.IGNORECASE | re.ASCII)
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)*", re.ASCII)
_NAMED = re.compile(
    r"\b(access_token|refresh_token|id_token|client_secret|client_assertion|password|passwd|patientID"
    r"|SAMLResponse|authorization)\b([\"']?\s*[=:]\s*[\"']?)(?!<)[^\s&\"',;}\]]+",
    re.IGNORECASE | re.ASCII,
)
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://[^/\s:@]{1,64}):[^/\s@]{1,256}@", re.IGNORECASE)
# C0, DEL, C1, line separators, and the marks that reorder or hide text on a screen.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def _hide_ins(found: re.Match[str]) -> str:
    text = found[0]
    digits = re.sub(r"[ \u00a0]", "", text).upper()
    if text[0] in "34":
        # A structure's identifier, 3 + SIRET or 4 + RPPS-rang, has 15 digits too: ask the key to decide.
        number = int(digits[:13].replace("2A", "19").replace("2B", "18"))
        if 97 - number % 97 != int(digits[13:]):
            return text
    return HIDDEN_INS


def redact(text: str) -> str:
    """Return `text` without INS-like numbers (15 digits), bearer tokens, JWTs and named secrets."""
    text = _SCHEME.sub(rf"\1 {HIDDEN_SECRET}", text)
    text = _JWT.sub(HIDDEN_SECRET, text)
    text = _NAMED.sub(rf"\1\2{HIDDEN_SECRET}", text)
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{HIDDEN_SECRET}@", text)
    return _INS.sub(_hide_ins, text)


def escape_control(text: str) -> str:
    r"""Return `text` on one line: every control, direction or invisible character becomes `\uXXXX`."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def safe_target(target: bytes, longest: int = 300) -> str:
    """Return what an access log may say of a request target: its path, never its query.

    The path of a WADO-RS request names studies and series, which are no patient data; the query of a
    viewer's URL names the patient.
    """
    path = target.partition(b"?")[0].partition(b"#")[0]
    return escape_control(redact(path.decode("ascii", "backslashreplace")))[:longest]
