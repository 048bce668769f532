"""From a coded error to an HTTP answer: status, headers and an `application/problem+json` body (RFC 9457).

The one place where `drimbox.errors` meets HTTP (architecture.md rule 8, decisions.md). The body is for
a person and a program at the peer: `code` is the E-code of the specification, `title` its French words,
`detail` what the gateway adds. It is plain ASCII JSON with `<`, `>` and `&` escaped too: whatever text
ends up in a detail cannot become markup, nor leave the JSON string, nor split a header.
"""

from __future__ import annotations

import json
import re

from drimbox.errors import DrimboxError

Headers = tuple[tuple[bytes, bytes], ...]

#: Characters of `detail` kept; the longest of ours lists the ten syntaxes of a 406.
MAX_DETAIL = 2000
#: Retry-After of a 503 whose error names none, seconds (decisions.md: E1003 always carries one).
DEFAULT_RETRY_AFTER = 5
_MAX_RETRY_AFTER = 86400
#: Controls, and the invisible characters that turn or cut a line on a screen.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]+")
_MARKUP = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def problem(error: DrimboxError) -> tuple[int, Headers, bytes]:
    """Return (status, headers, body) of the answer that tells a peer about `error`.

    503 always has a Retry-After, 401 a challenge (RFC 9110 15.5.2). The body carries no patient data
    because `detail` never does (errors.py); controls are removed from it and its length is bounded.
    """
    status = error.status
    document: dict[str, object] = {
        "type": f"urn:x-drimbox:{error.code}",
        "title": error.title,
        "status": status,
        "code": error.code,
    }
    detail = _INVISIBLE.sub(" ", error.detail).strip()[:MAX_DETAIL]
    if detail:
        document["detail"] = detail
    body = json.dumps(document, ensure_ascii=True).translate(_MARKUP).encode("ascii")
    headers: list[tuple[bytes, bytes]] = [
        (b"Content-Type", b"application/problem+json"),
        (b"Content-Language", b"fr"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
        (b"X-Content-Type-Options", b"nosniff"),
    ]
    if status == 401:
        headers.append((b"WWW-Authenticate", b'Bearer realm="DRIM-M"'))
    retry_after = error.retry_after
    if retry_after is None and status == 503:
        retry_after = DEFAULT_RETRY_AFTER
    if retry_after is not None:
        headers.append((b"Retry-After", b"%d" % min(max(int(retry_after), 0), _MAX_RETRY_AFTER)))
    return status, tuple(headers), body
