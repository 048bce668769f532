"""A lean Consumer in a process of its own: when the first image was there, and when the last byte.

`python -m bench.client` reads an order (one line of JSON), connects, says that it is ready, reads the
instant at which to ask (`at`, of the system's monotonic clock, one for all processes), asks, and prints
what it saw. A blocking socket that keeps nothing, so that what is measured is the other end. T1 is the
request sent on an open connection; the connection is over mutual TLS when the order names `roots`.

The first image is there when the last byte of its part is, not when the delimiter after it is: a server
may write that one with the next part. So each piece read is noted with its instant until the delimiter
has been found, and the instant of the piece that held the byte before it is the answer.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import time
from typing import Any

from bench.program import say

_BOUNDARY = re.compile(rb"boundary=\"?([0-9A-Za-z'()+_,./:=?-]+)")
#: End of a chunk and the head of the next (RFC 9112 7.1), between a part and its delimiter.
_CHUNK_HEAD = re.compile(rb"\r\n[0-9A-Fa-f]{1,8}\r\n\Z")
#: Seconds without a byte after which the answer counts as lost.
_SILENCE = 120.0


def main() -> None:
    """Carry out one order."""
    order = json.loads(sys.stdin.readline())
    with _connected(order) as connection:
        say(ready=True)
        at = json.loads(sys.stdin.readline())["at"]
        time.sleep(max(0.0, at - time.monotonic()))
        say(**fetch(connection, order))


def _connected(order: dict[str, Any]) -> socket.socket:
    plain = socket.create_connection((order.get("host", "127.0.0.1"), order["port"]), timeout=_SILENCE)
    if order.get("bytes_per_second"):
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    if not order.get("roots"):
        return plain
    context = ssl.create_default_context(cafile=order["roots"])
    context.load_cert_chain(order["certificate"], order["key"])
    return context.wrap_socket(plain, server_hostname=order["name"])


def fetch(connection: socket.socket, order: dict[str, Any]) -> dict[str, Any]:
    """Ask and read to the end. `bytes_per_second` of the order slows the reading down."""
    lines = [f"GET {order['path']} HTTP/1.1", f"Host: {order['name']}", *order["headers"]]
    request = ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode("ascii")
    busy = time.process_time()
    started = time.monotonic()
    connection.sendall(request)
    answer = _read(connection, started, order.get("bytes_per_second"))
    return {**answer, "started_at": started, "cpu": time.process_time() - busy}


def _read(connection: socket.socket, started: float, rate: float | None) -> dict[str, Any]:
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        if not data:
            return {"status": None, "problem": "connection closed without an answer"}
        head += data
    headers, _, rest = head.partition(b"\r\n\r\n")
    found = _BOUNDARY.search(headers)
    status = int(headers.split(b" ", 2)[1])
    if status != 200 or found is None:
        return {"status": status, "problem": rest[:500].decode("latin-1")}
    opening = b"--" + found[1]
    beginning = FirstPart(opening)
    beginning.feed(rest, time.monotonic())
    total, tail = len(rest), rest[-256:]
    buffer = bytearray(1 << 18)
    view = memoryview(buffer)
    while size := connection.recv_into(buffer):
        total += size
        if not beginning.ended_at:
            beginning.feed(bytes(view[:size]), time.monotonic())
        # The last bytes are enough to see the closing delimiter and the end of the chunks.
        tail = (tail + bytes(view[max(0, size - 256) : size]))[-256:]
        if rate:
            time.sleep(max(0.0, total / rate - (time.monotonic() - started)))
    ended = time.monotonic()
    chunked = re.search(rb"(?i)transfer-encoding: *chunked", headers) is not None
    complete = b"\r\n" + opening + b"--" in tail and (not chunked or tail.endswith(b"0\r\n\r\n"))
    return {
        "status": status,
        "first_at": beginning.ended_at,
        "ended_at": ended,
        "bytes": total,
        "complete": complete,
    }


class FirstPart:
    """Finds when the last byte of the first part came. `opening` is `--` and the boundary."""

    def __init__(self, opening: bytes) -> None:
        self._opening = opening
        self._seen = bytearray()
        self._begin = -1
        #: Bytes already searched, and how many bytes had come at which instant.
        self._searched = 0
        self._arrivals: list[tuple[int, float]] = []
        #: Instant of the last byte of the first part; 0 before it is known.
        self.ended_at = 0.0

    def feed(self, data: bytes, now: float) -> None:
        """Take the bytes that came now, chunk heads included."""
        self._seen += data
        self._arrivals.append((len(self._seen), now))
        if self._begin < 0:
            found = self._seen.find(self._opening)
            if found < 0:
                return
            self._begin = self._searched = found + len(self._opening)
        mark = b"\r\n" + self._opening
        place = self._seen.find(mark, self._searched)
        if place < 0:
            self._searched = max(self._begin, len(self._seen) - len(mark))
            return
        if chunk := _CHUNK_HEAD.search(self._seen, max(self._begin, place - 12), place):
            place = chunk.start()
        self.ended_at = next(instant for count, instant in self._arrivals if count >= place)
        self._seen.clear()


if __name__ == "__main__":
    main()
