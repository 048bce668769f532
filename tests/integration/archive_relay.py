"""A relay in front of Orthanc's REST interface that misbehaves on demand, over real sockets."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Says what to do with one answer: takes path and body; returns the body, or raises one of those below.
Behaviour = Callable[[str, bytes], bytes]


class Refuse(Exception):
    """Answer with this status."""


class CutAfter(Exception):
    """Announce the whole body, send so many bytes, close the connection."""


class Stall(Exception):
    """Announce the whole body, send so many bytes, then nothing for so many seconds."""


def honest(path: str, body: bytes) -> bytes:
    """Pass on what Orthanc said."""
    return body


def unheeding(path: str) -> None:
    """Do nothing before the archive is asked."""


class Relay(ThreadingHTTPServer):
    """Listens on loopback; `behaviour` may be changed at any time, `paths` is what was asked.

    `before` is called with each path before the archive is asked, one call at a time.
    """

    daemon_threads = True

    def __init__(self, port: int, orthanc: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.orthanc = orthanc
        self.behaviour: Behaviour = honest
        self.before: Callable[[str], None] = unheeding
        self.paths: list[str] = []
        self.turn = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the play."""


class _Handler(BaseHTTPRequestHandler):
    server: Relay
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._relay()

    def do_POST(self) -> None:
        self._relay()

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.paths.append(self.path)
        with self.server.turn:
            self.server.before(self.path)
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.orthanc, timeout=20)) as upstream:
            upstream.request(self.command, self.path, body or None)
            response = upstream.getresponse()
            answer, status = response.read(), response.status
        try:
            if status == 200:
                answer = self.server.behaviour(self.path, answer)
        except Refuse as refusal:
            answer, status = b'{"Message": "no"}', int(str(refusal))
        except (CutAfter, Stall) as half:
            self._half(answer, half)
            return
        self._head(status, len(answer))
        self.wfile.write(answer)

    def _half(self, answer: bytes, half: CutAfter | Stall) -> None:
        self._head(200, len(answer))
        self.wfile.write(answer[: int(half.args[0])])
        self.wfile.flush()
        if isinstance(half, Stall):
            time.sleep(float(half.args[1]))
        self.close_connection = True
        # A reset, as of a process that was killed.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _head(self, status: int, size: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def relaying(port: int, orthanc: int) -> Iterator[Relay]:
    """Run a relay in a thread of its own."""
    relay = Relay(port, orthanc)
    thread = threading.Thread(target=relay.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        relay.shutdown()
        relay.server_close()


def is_file(path: str) -> bool:
    """Say whether a request is for the bytes of an instance."""
    return re.fullmatch(r"/instances/[0-9a-f-]+/file", path) is not None
