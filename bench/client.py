"""A lean Consumer for the bench, in a process of its own: as the client sees it, T2-T1 and T3-T1.

`python -m bench.client` reads one JSON order on standard input and prints one JSON answer. A blocking
TLS socket that keeps nothing: it looks for the end of the first part and for the closing boundary, so
that what is measured is the gateway and not its client. T1 is the request sent on an open connection.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import time
from typing import Any

_BOUNDARY = re.compile(rb"boundary=\"?([0-9A-Za-z'()+_,./:=?-]+)")


def fetch(order: dict[str, Any]) -> dict[str, Any]:
    """Make one request; `bytes_per_second` of the order slows the reading down."""
    context = ssl.create_default_context(cafile=order["roots"])
    context.load_cert_chain(order["certificate"], order["key"])
    raw = socket.create_connection(("127.0.0.1", order["port"]), timeout=120)
    rate = order.get("bytes_per_second")
    if rate:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    with context.wrap_socket(raw, server_hostname=order["sni"]) as connection:
        lines = [
            f"GET {order['path']} HTTP/1.1",
            f"Host: {order['sni']}",
            *order["headers"],
            "Connection: close",
        ]
        start = time.perf_counter()
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        return _read(connection, start, rate)


def _read(connection: ssl.SSLSocket, start: float, rate: float | None) -> dict[str, Any]:
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        if not data:
            return {"status": None}
        head += data
    headers, _, rest = head.partition(b"\r\n\r\n")
    found = _BOUNDARY.search(headers)
    status = int(headers.split(b" ", 2)[1])
    if status != 200 or found is None:
        return {"status": status, "body": rest.decode("latin-1")}
    mark = b"\r\n--" + found[1]
    total, first, tail = len(rest), 0.0, rest
    buffer = bytearray(1 << 18)
    view = memoryview(buffer)
    while True:
        size = connection.recv_into(buffer)
        if not size:
            break
        total += size
        if not first:
            tail += view[:size]
            if mark in tail:
                first = time.perf_counter() - start
        else:
            # The last bytes are enough to see the closing boundary and the end of the chunks.
            tail = (tail + bytes(view[max(0, size - 256) : size]))[-256:]
        if rate:
            ahead = total / rate - (time.perf_counter() - start)
            if ahead > 0:
                time.sleep(ahead)
    seconds = time.perf_counter() - start
    complete = tail.endswith(b"0\r\n\r\n") and mark + b"--" in tail
    return {"status": status, "first": first, "total": seconds, "bytes": total, "complete": complete}


if __name__ == "__main__":
    print(json.dumps(fetch(json.load(sys.stdin))))
