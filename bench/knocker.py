"""A Consumer in a process of its own that does nothing but open connections to the WADO-RS door.

`python -m bench.knocker` reads an order, one line of JSON: `port`, `name`, `roots`, `certificate`, `key`,
`at` (instant to begin at, of the system's monotonic clock) and `seconds`; `request`, sent on each
connection and answered in full, or null; `version`, "1.2" or "1.3"; `offer`, whether each connection offers
the session of the one before. It answers `{"count", "resumed", "cpu"}`.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from bench.program import answer_lines
from drimbox.sim.peers import LOOPBACK

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class WrongAnswer(Exception):
    """Not the answer that was to be measured."""


def knock(order: dict[str, Any]) -> dict[str, object]:
    """Open connections one after the other until the time is over."""
    context = ssl.create_default_context(cafile=order["roots"])
    context.load_cert_chain(order["certificate"], order["key"])
    context.minimum_version = context.maximum_version = _VERSIONS[order["version"]]
    request = (order["request"] or "").encode("ascii")
    session, count, resumed = None, 0, 0
    time.sleep(max(0.0, order["at"] - time.monotonic()))
    before, end = time.process_time(), time.monotonic() + order["seconds"]
    while time.monotonic() < end:
        with (
            socket.create_connection((LOOPBACK, order["port"]), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname=order["name"], session=session) as connection,
        ):
            if request:
                _answered(connection, request)
            count += 1
            resumed += bool(connection.session_reused)
            session = connection.session if order["offer"] else None
    return {"count": count, "resumed": resumed, "cpu": time.process_time() - before}


def _answered(connection: ssl.SSLSocket, request: bytes) -> None:
    connection.sendall(request)
    answer = b""
    while more := connection.recv(65536):
        answer += more
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise WrongAnswer(repr(answer[:60]))


if __name__ == "__main__":
    answer_lines(knock)
