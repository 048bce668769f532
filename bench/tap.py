"""A tap on the wire between a PACS and the gateway: when the first C-STORE byte came.

A relay: what comes in on one port goes out to another, unread but for the heads of the first PDUs of a
connection. The instant noted is that of the read which brought the first byte of the first P-DATA-TF PDU
(PS3.8 9.3.5) from the side that connected: on a storage association that is the first byte of the first
C-STORE request. Noted before it is passed on, so what the relay itself costs (under 0.1 ms) counts
against the gateway. Same socket options as everybody here.

It stands between only for the deliveries whose first image is looked at.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time

from bench.program import answer_lines, say

_DATA = 0x04
_READ = 256 * 1024
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class FirstData:
    """Finds the first P-DATA-TF PDU in a stream of PDUs."""

    def __init__(self) -> None:
        self._head = b""
        self._skip = 0
        self.found = False

    def feed(self, data: bytes) -> bool:
        """Take the next bytes of the stream; True when they hold its first byte."""
        view = data
        while view and not self.found:
            if self._skip:
                passed = min(self._skip, len(view))
                self._skip -= passed
                view = view[passed:]
                continue
            if not self._head and view[0] == _DATA:
                self.found = True
                return True
            wanted = 6 - len(self._head)
            self._head, view = self._head + view[:wanted], view[wanted:]
            if len(self._head) == 6:
                self._skip = int(struct.unpack(">BxI", self._head)[1])
                self._head = b""
        return False


class Tap:
    """Relays connections and notes the instants."""

    def __init__(self, port: int, to: int) -> None:
        self._to = to
        self._instants: list[float] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)

    def run(self) -> None:
        """Accept for ever."""
        while True:
            near, _ = self._listener.accept()
            threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def report(self) -> list[float]:
        """Return the instants noted since the last report."""
        instants, self._instants = self._instants, []
        return instants

    def _relay(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._copy, args=(far, near, None), daemon=True)
        back.start()
        self._copy(near, far, FirstData())
        back.join()
        near.close()
        far.close()

    def _copy(self, source: socket.socket, target: socket.socket, finder: FirstData | None) -> None:
        buffer = bytearray(_READ)
        view = memoryview(buffer)
        with contextlib.suppress(OSError):
            while size := source.recv_into(buffer):
                if finder is not None and not finder.found:
                    now = time.monotonic()
                    if finder.feed(bytes(view[:size])):
                        self._instants.append(now)
                if _QUICKACK is not None:
                    source.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
                target.sendall(view[:size])
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def main() -> None:
    """Relay from the first port named to the second; report the instants when asked."""
    tap = Tap(int(sys.argv[1]), int(sys.argv[2]))
    threading.Thread(target=tap.run, daemon=True).start()
    say(ready=True)
    answer_lines(lambda order: {"instants": tap.report()})


if __name__ == "__main__":
    main()
