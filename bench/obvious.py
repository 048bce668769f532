"""The obvious gateway: pynetdicom on both sides, an HTTP server of the standard library before it.

What one writes first, and what several published gateways are: `AE.start_server` with a handler of
`evt.EVT_C_STORE` that puts each instance, as a Part 10 file, in a queue; a request starts a C-MOVE to our
own AE title and sends what the queue brings as parts of a multipart answer, while it comes. Complete and
honest: it streams, it is bounded, it says when it has failed by cutting the answer. Nothing is done to
slow it down: PDUs of 128 KiB as ours, no decoding (`encoded_dataset`), no TLS and no check of anything.

One request at a time, since one AE title tells nobody's images apart.

`python -m bench.obvious PACS_TITLE PACS_PORT TITLE DICOM_PORT`; it says on which port it answers HTTP.
"""

from __future__ import annotations

import queue
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove  # type: ignore[attr-defined]

from bench.null_receiver import MAXIMUM_PDU
from bench.program import answer_lines, say
from drimbox.sim.peers import LOOPBACK

_BOUNDARY = "1f0c9a4e7d2b4b6c8e35"
#: Instances received and not yet sent.
_QUEUE = 32


class ObviousGateway:
    """Receives for one request at a time."""

    def __init__(self, pacs_title: str, pacs_port: int, title: str, port: int) -> None:
        self._pacs = (pacs_title, pacs_port)
        self._title = title
        self._turn = threading.Lock()
        #: Part 10 files; None at the end, an exception when the move failed.
        self._instances: queue.Queue[bytes | Exception | None] = queue.Queue(_QUEUE)
        entity = AE(ae_title=title)
        entity.maximum_pdu_size = MAXIMUM_PDU
        for context in AllStoragePresentationContexts:
            syntaxes = [JPEGLSLossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            entity.add_supported_context(str(context.abstract_syntax), syntaxes)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._stored)]
        entity.start_server((LOOPBACK, port), block=False, evt_handlers=handlers)

    def _stored(self, event: Any) -> int:
        self._instances.put(event.encoded_dataset())
        return 0x0000

    def answer(self, request: _Handler, study: str, series: str) -> None:
        """Move a series and send it as it comes."""
        with self._turn:
            threading.Thread(target=self._move, args=(study, series), daemon=True).start()
            request.send_response(200)
            request.send_header(
                "Content-Type", f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
            )
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            head = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            while (instance := self._instances.get()) is not None:
                if isinstance(instance, Exception):
                    raise instance
                request.chunk(head + instance)
                head = b"\r\n" + head if not head.startswith(b"\r") else head
            request.chunk(f"\r\n--{_BOUNDARY}--\r\n".encode())
            request.chunk(b"")

    def _move(self, study: str, series: str) -> None:
        try:
            entity = AE(ae_title=self._title)
            entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
            title, port = self._pacs
            association = entity.associate(LOOPBACK, port, ae_title=title)
            if not association.is_established:
                raise RuntimeError("the PACS accepts no association")
            identifier = Dataset()
            identifier.QueryRetrieveLevel = "SERIES"
            identifier.StudyInstanceUID, identifier.SeriesInstanceUID = study, series
            last: Any = None
            model = StudyRootQueryRetrieveInformationModelMove
            for status, _ in association.send_c_move(identifier, self._title, model):
                last = status
            association.release()
            if not last or last.Status != 0x0000:
                raise RuntimeError(f"the C-MOVE ended with {last}")
            self._instances.put(None)
        except Exception as error:  # the request must hear of it, whatever it is
            self._instances.put(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gateway: ObviousGateway

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("/")
        try:
            self.gateway.answer(self, parts[-3], parts[-1])
        finally:
            self.close_connection = True

    def chunk(self, data: bytes) -> None:
        """Send one chunk."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Write no access log."""


def main() -> None:
    """Serve until the standard input ends."""
    _, pacs_title, pacs_port, title, port = sys.argv
    _Handler.gateway = ObviousGateway(pacs_title, int(pacs_port), title, int(port))
    server = ThreadingHTTPServer((LOOPBACK, 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(port=server.server_address[1])
    answer_lines(lambda order: {})
    server.shutdown()


if __name__ == "__main__":
    main()
