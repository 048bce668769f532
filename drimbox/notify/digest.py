"""What a digest of notices says, as a mail and as JSON (DB.SO.21). Pure: a `Digest` in, text or data out.

It leaves the structure's own machines: besides holding no patient data, as no notice does, its texts go
through `redaction`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from drimbox.ports import Digest, Notice, Severity
from drimbox.redaction import escape_control, redact

#: Longest text of one notice, characters.
_LONGEST = 1000
_ORDER = (Severity.GRAVE, Severity.ATTENTION, Severity.INFORMATION)


def subject(digest: Digest) -> str:
    """Return the subject of a mail: who speaks, how many notices, and the gravest."""
    if digest.test:
        return f"[{digest.name}] essai d'envoi des avis"
    count = len(digest.notices) + digest.more
    gravest = min((each.severity for each in digest.notices), key=_ORDER.index)
    return f"[{digest.name}] {count} avis, gravité : {gravest.value}"


def text(digest: Digest) -> str:
    """Return the text of a mail."""
    lines = [f"DRIMbox {digest.name} (système {digest.system_id}), {_instant(digest.sent_at)}", ""]
    if digest.test:
        lines.append("Ceci est un essai : l'envoi des avis fonctionne.")
    for notice in sorted(digest.notices, key=lambda each: (_ORDER.index(each.severity), each.id)):
        times = f", {notice.count} fois" if notice.count > 1 else ""
        lines += [
            f"{notice.severity.value.upper()}  {notice.code}  avis {notice.id}",
            f"  {_clean(notice.text)}",
            f"  depuis le {_instant(notice.first_at)}, dernière fois le {_instant(notice.last_at)}{times}",
            "",
        ]
    if digest.more:
        lines += [f"et {digest.more} autre(s).", ""]
    if digest.notices:
        lines.append("Liste : drimbox notices list ; acquitter : drimbox notices ack NUMÉRO")
    return "\n".join(lines) + "\n"


def data(digest: Digest) -> dict[str, Any]:
    """Return what is posted as JSON."""
    return {
        "id": digest.id,
        "source": digest.name,
        "system_id": digest.system_id,
        "sent_at": digest.sent_at.astimezone(UTC).isoformat(timespec="seconds"),
        "test": digest.test,
        "notices": [_notice(each) for each in digest.notices],
        "more": digest.more,
    }


def _notice(notice: Notice) -> dict[str, Any]:
    return {
        "id": notice.id,
        "severity": notice.severity.value,
        "code": notice.code,
        "text": _clean(notice.text),
        "count": notice.count,
        "first_at": notice.first_at.astimezone(UTC).isoformat(timespec="seconds"),
        "last_at": notice.last_at.astimezone(UTC).isoformat(timespec="seconds"),
    }


def _clean(words: str) -> str:
    words = escape_control(redact(words))
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"


def _instant(value: datetime) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
