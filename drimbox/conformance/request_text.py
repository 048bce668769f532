"""Cutting a captured HTTP request into lines that keep their number (RFC 9112 2 to 5).

Captures come from logs and specifications: bare LF instead of CRLF, no empty line at the end, an
absolute URI in the request line. Those are told and survived. What two servers could read in two ways
(a folded line, a blank before the colon, a control character) is an error, and the reader still goes on
with what it can make of the line, since the integrator wants every fault at once.
"""

from __future__ import annotations

import re

import attrs

from drimbox.conformance.report import Report, shown

#: Largest head read, bytes; a real one has some 3 KB.
MAX_HEAD = 64 * 1024
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")


@attrs.frozen
class HeaderLine:
    """One header: the number of its line, its name as written, its value without blanks around."""

    number: int
    name: bytes
    value: bytes = attrs.field(repr=False)

    @property
    def key(self) -> bytes:
        """The name in lower case."""
        return self.name.lower()


@attrs.frozen
class RequestText:
    """A request cut into its pieces."""

    number: int
    method: bytes
    target: bytes
    version: bytes
    headers: tuple[HeaderLine, ...]

    def named(self, key: bytes) -> list[HeaderLine]:
        """Return the headers of a name (lower case), in their order."""
        return [header for header in self.headers if header.key == key]


def read_request_text(data: bytes, report: Report) -> RequestText | None:
    """Cut a capture into request line and headers; faults go to `report`.

    Returns None when there is no request line to work with.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        report.error("marque d'ordre des octets (BOM) avant la requête", "RFC 9112 3", line=1)
        data = data[3:]
    head, rest, bare = _split_head(data)
    if len(head) > MAX_HEAD:
        report.error(f"en-têtes de plus de {MAX_HEAD // 1024} Kio", "RFC 9110 5.4")
        return None
    lines = head.split(b"\n")
    if bare:
        report.inform("fins de ligne LF seules dans la capture ; CRLF sur le réseau", "RFC 9112 2.2")
    if rest is None:
        report.inform("ligne vide absente à la fin des en-têtes de la capture", "RFC 9112 2.1")
    elif rest.strip(b"\r\n"):
        report.warning(
            f"{len(rest)} octet(s) après les en-têtes : un GET n'a pas de corps", "RFC 9110 9.3.1"
        )
    if not head.strip(b"\r\n"):
        report.error("aucune ligne de requête", "RFC 9112 3")
        return None
    number = 1
    while not lines[0].strip(b"\r"):
        report.warning("ligne vide avant la requête", "RFC 9112 2.2", line=number)
        lines.pop(0)
        number += 1
    start = _start_line(lines[0].removesuffix(b"\r"), number, report)
    if start is None:
        return None
    headers = _headers([line.removesuffix(b"\r") for line in lines[1:]], number + 1, report)
    return RequestText(number, *start, tuple(headers))


def _split_head(data: bytes) -> tuple[bytes, bytes | None, bool]:
    """Return (head with LF ends, what follows its empty line or None, whether a line end was bare)."""
    stripped = data.lstrip(b"\r\n")
    lead = len(data) - len(stripped)
    ends = [found for mark in (b"\r\n\r\n", b"\n\n") if (found := data.find(mark, lead)) >= 0]
    if not ends:
        head, rest = data, None
    else:
        end = min(ends)
        mark = b"\r\n\r\n" if data.startswith(b"\r\n\r\n", end) else b"\n\n"
        head, rest = data[:end], data[end + len(mark) :]
    bare = re.search(rb"(?<!\r)\n", head) is not None or (
        rest is not None and bool(ends) and mark == b"\n\n"
    )
    return head.rstrip(b"\r\n") if rest is None else head, rest, bare


def _start_line(line: bytes, number: int, report: Report) -> tuple[bytes, bytes, bytes] | None:
    words = line.split()
    if len(words) != 3 or line != b" ".join(words):
        report.error(
            "ligne de requête : trois mots séparés par un espace attendus (méthode, cible, version)",
            "RFC 9112 3",
            line=number,
        )
        if len(words) < 2:
            return None
    method, target = words[0], words[1]
    version = words[2] if len(words) > 2 else b""
    if version != b"HTTP/1.1":
        known = _VERSION.fullmatch(version) is not None
        report.error(
            f"version {shown(version)} : HTTP/1.1 attendu" if known else "version HTTP illisible",
            "RFC 9112 2.3",
            line=number,
        )
    return method, target, version


def _headers(lines: list[bytes], number: int, report: Report) -> list[HeaderLine]:
    headers: list[HeaderLine] = []
    for index, line in enumerate(lines, number):
        if line[:1] in (b" ", b"\t"):
            report.error("ligne repliée : un en-tête tient sur une ligne", "RFC 9112 5.2", line=index)
            if headers:
                last = headers.pop()
                headers.append(attrs.evolve(last, value=last.value + b" " + line.strip(b" \t")))
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            report.error("ligne d'en-tête sans deux-points", "RFC 9112 5", line=index)
            continue
        if name != name.rstrip(b" \t"):
            report.error(
                "blanc entre le nom de l'en-tête et les deux-points (réponse 400)",
                "RFC 9112 5.1",
                line=index,
            )
            name = name.rstrip(b" \t")
        if _NAME.fullmatch(name) is None:
            report.error(f"nom d'en-tête {shown(name, 40)} illégal", "RFC 9110 5.1", line=index)
            continue
        _value(name, value, index, report)
        headers.append(HeaderLine(index, name, value.strip(b" \t")))
    return headers


def _value(name: bytes, value: bytes, line: int, report: Report) -> None:
    if value[:1] not in (b" ", b"\t", b""):
        report.inform("pas d'espace après les deux-points", "RFC 9112 5", line=line)
    if any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in value):
        report.error(f"caractère de commande dans {shown(name, 40)}", "RFC 9110 5.5", line=line)
    elif any(byte >= 0x80 for byte in value):
        report.warning(f"caractère hors ASCII dans {shown(name, 40)}", "RFC 9110 5.5", line=line)
