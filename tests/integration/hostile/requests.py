"""Requests of a Consumer that is listed and hostile, and of whoever reaches the other HTTP doors."""

from __future__ import annotations

import random
import re

from tests.integration.hostile.target import Attack, Target, heard

_OK = re.compile(rb"(?m)^HTTP/1\.1 200 ")


def _lines(target: Target, first: str, *more: str, token: str = "x.y.z") -> bytes:
    lines = [
        first,
        f"Host: {target.site}",
        "Accept: */*",
        f"Authorization: Bearer {token}",
        "KOS-SOPInstanceUID: 2.25.1",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _refused(target: Target, source: str, data: bytes, *more: bytes) -> bytes:
    """Send bytes as a listed Consumer; no image may come."""
    with target.tls(source) as connection:
        answer = heard(connection, data, *more)
    assert not _OK.search(answer), data[:200]
    return answer


def paths(target: Target, chance: random.Random, source: str) -> None:
    """UIDs that are paths."""
    uid = chance.choice(
        ("../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "1.2%00", "1" * 65, "%2e%2e/", "C:\\x", "")
    )
    path = f"/dicom-web-rs/studies/{uid}/series/{chance.choice((uid, '1.2'))}"
    assert b"root:" not in _refused(target, source, _lines(target, f"GET {path} HTTP/1.1"))


def header_injection(target: Target, chance: random.Random, source: str) -> None:
    """What would come back in a header, if anything did."""
    mark = "X-Injected"
    path = chance.choice((f"/a%0d%0a{mark}:1", f"/a\x0b{mark}:1", f"/<script>{mark}</script>"))
    header = chance.choice((f"Origin: \x00{mark}", f"Accept: a\x1b[2J{mark}", f"User-Agent: {mark}"))
    answer = _refused(target, source, _lines(target, f"GET {path} HTTP/1.1", header))
    assert mark.encode() not in answer


def boundary(target: Target, chance: random.Random, source: str) -> None:
    """A boundary of the client's: images come, behind another one."""
    evil = b'Accept: multipart/related; type="application/dicom"; boundary="evil"; transfer-syntax=*\r\n'
    lines = [line for line in target.request.split(b"\r\n") if line and not line.startswith(b"Accept")]
    with target.tls(source) as connection:
        answer = heard(connection, b"\r\n".join(lines) + b"\r\n" + evil + b"\r\n", patience=5.0)
    assert b"evil" not in answer


def smuggling(target: Target, chance: random.Random, source: str) -> None:
    """Two readings of one request, and requests one behind the other."""
    first = f"GET {target.path} HTTP/1.1"
    hidden = _lines(target, first).decode("latin-1")
    data = chance.choice(
        (
            _lines(target, first, "Host: evil.example"),
            _lines(target, first, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
            _lines(target, first, "Content-Length: 5", "Content-Length: 6"),
            _lines(target, first, "Transfer-Encoding: identity"),
            _lines(target, first, "Transfer-Encoding : chunked") + hidden.encode("latin-1"),
            _lines(target, "GET http://evil.example/ HTTP/1.1"),
            _lines(target, first) * 20,
            _lines(target, first).replace(b"\r\n", b"\n"),
            b"\r\n" * 200 + _lines(target, "GET\t/ HTTP/9.9"),
        )
    )
    _refused(target, source, data)


def bodies(target: Target, chance: random.Random, source: str) -> None:
    """Bodies without end, announced or not, and heads without end."""
    first = f"{chance.choice(('GET', 'POST', 'PUT'))} {target.path} HTTP/1.1"
    match chance.randrange(4):
        case 0:
            _refused(target, source, _lines(target, first, "Content-Length: 99999999999"), b"x" * 200_000)
        case 1:
            chunks = b"ffff\r\n" + b"x" * 65535 + b"\r\n"
            _refused(target, source, _lines(target, first, "Transfer-Encoding: chunked"), chunks * 4)
        case 2:
            _refused(target, source, _lines(target, first, *(f"X-{n}: y" for n in range(2000))))
        case _:
            _refused(target, source, _lines(target, first + "x" * 100_000))


def tokens(target: Target, chance: random.Random, source: str) -> None:
    """Tokens that are too long, odd, expired or not there."""
    token = chance.choice(("a" * 70_000, "a" * 9000, "é\x7f\x01", "eyJhbGciOiJub25lIn0.e30.", " ", "x.y.z"))
    _refused(target, source, _lines(target, f"GET {target.path} HTTP/1.1", token=token))


def viewer_pages(target: Target, chance: random.Random, source: str) -> None:
    """The pages of a viewer's name, by whoever is not meant."""
    path = chance.choice(("/healthcheck/drimbox", "/healthcheck/../../x", "/", target.path, "/x" * 2000))
    with target.tls(source, "none", target.viewer) as connection:
        answer = heard(connection, f"GET {path} HTTP/1.1\r\nHost: {target.viewer}\r\n\r\n".encode())
    assert not _OK.search(answer)


def foreign_page(target: Target, chance: random.Random, source: str) -> None:
    """A page of the web in a browser on this machine, which reaches the admin listener."""
    host = chance.choice(("evil.example", "localhost", f"127.0.0.1:{target.admin}"))
    body = b'{"text":"x"}'
    head = f"POST /notices/acknowledge HTTP/1.1\r\nHost: {host}\r\nOrigin: https://evil.example\r\n"
    head += f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    with target.connect(target.admin, "127.0.0.1") as connection:
        answer = heard(connection, head.encode() + body)
    assert not _OK.search(answer)


ATTACKS: dict[str, tuple[Attack, ...]] = {
    "path traversal by UID, AE title, file name": (paths,),
    "response header injection": (header_injection,),
    "multipart injection": (boundary,),
    "request smuggling, pipelining": (smuggling,),
    "Content-Length and body bombs": (bodies,),
    "tokens: oversize, odd, logged, of others": (tokens,),
    "XSS in error pages": (header_injection, viewer_pages),
    "unsafe deserialisation": (foreign_page,),
}
