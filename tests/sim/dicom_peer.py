"""The two ends a PACS talks to, on pynetdicom: one that asks, one that receives."""

from __future__ import annotations

import threading
from typing import Any, Self

import attrs
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.transport import ThreadedAssociationServer

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"


@attrs.frozen
class Stored:
    """One C-STORE request as it came."""

    uid: str
    transfer_syntax: str
    calling: str
    originator: tuple[str | None, int | None]
    association: int
    dataset: Dataset


class Receiver:
    """A storage SCP that keeps what it gets in memory."""

    def __init__(self, *, status: int = 0x0000, syntaxes: list[str] | None = None) -> None:
        self.stored: list[Stored] = []
        self.events: list[str] = []
        self.status = status
        self.delay = threading.Event()
        self.delay.set()
        self._ae = AE(ae_title="DRIM1")
        self._ae.network_timeout = None
        for context in AllStoragePresentationContexts:
            wanted = syntaxes or [JPEGLSLossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            self._ae.add_supported_context(str(context.abstract_syntax), wanted)

    def __enter__(self) -> Self:
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_ABORTED, lambda event: self.events.append("aborted")),
            (evt.EVT_RELEASED, lambda event: self.events.append("released")),
        ]
        # As `start_server(block=False)`, but without its half second to stop.
        self._server: Any = self._ae.make_server(
            ("127.0.0.1", 0), evt_handlers=handlers, server_class=ThreadedAssociationServer
        )
        self._ae._servers.append(self._server)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = ("127.0.0.1", self._server.server_address[1])
        return self

    def __exit__(self, *unused: object) -> None:
        self.delay.set()
        self._ae.shutdown()

    @property
    def uids(self) -> list[str]:
        """What was stored, in order."""
        return [stored.uid for stored in self.stored]

    def _on_store(self, event: Any) -> int:
        self.delay.wait(10)
        request = event.request
        self.stored.append(
            Stored(
                uid=str(request.AffectedSOPInstanceUID),
                transfer_syntax=str(event.context.transfer_syntax),
                calling=event.assoc.requestor.ae_title.strip(),
                originator=(request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID),
                association=id(event.assoc),
                dataset=event.dataset,
            )
        )
        return self.status


class Asker:
    """An SCU of the PACS: C-ECHO, C-FIND, C-MOVE."""

    def __init__(self, host: str, port: int, *, calling: str = "DRIMBOX", called: str = "PACS") -> None:
        self._ae = AE(ae_title=calling)
        self._ae.dimse_timeout = 10
        self._ae.acse_timeout = 10
        self._ae.connection_timeout = 5
        for uid in ("1.2.840.10008.1.1", FIND, MOVE):
            self._ae.add_requested_context(uid)
        self._where = (host, port, called)

    def associate(self, *, relational: bool = False) -> Any:
        """Open an association; look at `is_established`."""
        negotiation = []
        if relational:
            item = SOPClassExtendedNegotiation()
            item.sop_class_uid, item.service_class_application_information = FIND, b"\x01"
            negotiation.append(item)
        host, port, called = self._where
        return self._ae.associate(host, port, ae_title=called, ext_neg=negotiation)

    def echo(self) -> int | None:
        """C-ECHO on an association of its own; None without an answer."""
        association = self.associate()
        if not association.is_established:
            return None
        status = association.send_c_echo()
        association.release()
        return int(status.Status) if "Status" in status else None

    def find(self, *, relational: bool = False, **keys: object) -> tuple[list[Dataset], int | None]:
        """C-FIND; the answers and the last status, None when the association ended before it."""
        association = self.associate(relational=relational)
        assert association.is_established
        answers, last = [], None
        for status, answer in association.send_c_find(identifier(**keys), FIND):
            last = int(status.Status) if "Status" in status else None
            if answer is not None:
                answers.append(answer)
        if association.is_established:
            association.release()
        return answers, last

    def move(
        self,
        destination: str,
        *,
        cancel_after: int | None = None,
        abort_after: int | None = None,
        **keys: object,
    ) -> list[Dataset]:
        """C-MOVE; all the responses, an empty one last when the association ended before the final."""
        association = self.associate()
        assert association.is_established
        answers = []
        for status, _ in association.send_c_move(identifier(**keys), destination, MOVE, msg_id=7):
            answers.append(status)
            if len(answers) == cancel_after:
                association.send_c_cancel(7, query_model=MOVE)
            if len(answers) == abort_after:
                association.abort()
                break
        if association.is_established:
            association.release()
        return answers


def identifier(**keys: object) -> Dataset:
    """Make an identifier from keywords."""
    data = Dataset()
    for keyword, value in keys.items():
        setattr(data, keyword, value)
    return data
