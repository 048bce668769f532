"""A PACS in this very process whose every answer a test writes, and what it saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydicom.dataset import Dataset
from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory

from drimbox.dicom.association import Aborted, Event, Released, ReleaseRequested, UpperLayer
from drimbox.dicom.dimse import Command, CommandField, CommandReceived, DataReceived
from drimbox.dicom.identifiers import decode_dataset, encode_dataset
from drimbox.dicom.negotiation import AssociationRequest
from drimbox.dicom.transport import AssociationProtocol
from tests.dicom.box import HOST

reactor: Any = _reactor
Script = Callable[["Answering", Command, Dataset | None], None]


class Answering(AssociationProtocol):
    """One association opened to the scripted PACS."""

    def __init__(self, pacs: ScriptedPacs) -> None:
        super().__init__(UpperLayer(pacs.max_pdu), reactor, artim=5.0, idle=60.0)
        self.pacs = pacs
        self.counted = False
        self.command: Command | None = None
        self.context = 0
        self.data = bytearray()

    def started(self) -> None:
        """Wait for the request."""
        self.layer.transport_indication()

    def handle(self, event: Event) -> None:
        """Note, and let the script answer."""
        pacs = self.pacs
        if isinstance(event, AssociationRequest):
            self.counted = True
            pacs.open += 1
            pacs.most = max(pacs.most, pacs.open)
            refused = pacs.refuse
            accepted = {
                c.id: c.transfer_syntaxes[0] for c in event.contexts if c.abstract_syntax != refused
            }
            self.layer.accept(accepted, extended=pacs.extended)
        elif isinstance(event, CommandReceived):
            pacs.seen.append(event.command)
            self.command, self.context = event.command, event.context_id
            self.data.clear()
            if not event.command.has_dataset:
                pacs.script(self, event.command, None)
        elif isinstance(event, DataReceived):
            self.data += event.data
            if event.last and self.command is not None:
                syntax = self.layer.contexts[self.context]
                pacs.script(self, self.command, decode_dataset(bytes(self.data), syntax))
        elif isinstance(event, ReleaseRequested):
            pacs.ends.append("release")
            self._uncount()
            if pacs.grants_release:
                self.layer.release_reply()
        elif isinstance(event, Aborted | Released):
            pacs.ends.append("abort")
            self._uncount()

    def gone(self) -> None:
        """Count."""
        self._uncount()

    def _uncount(self) -> None:
        if self.counted:
            self.counted = False
            self.pacs.open -= 1

    def answer(self, status: int | None, dataset: Dataset | bytes | None = None, **changes: Any) -> None:
        """Send one response to the last request."""
        assert self.command is not None
        response = Command(
            field=changes.pop("field", self.command.field | 0x8000),
            responded_id=changes.pop("responded_id", self.command.message_id),
            affected_class=self.command.affected_class,
            status=status,
            **changes,
        )
        if isinstance(dataset, Dataset):
            dataset = encode_dataset(dataset, self.layer.contexts[self.context])
        self.layer.send(self.context, response, dataset)
        self.flush()

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        transport: Any = self.transport
        transport.write(data)

    def cut(self) -> None:
        """Drop the connection."""
        transport: Any = self.transport
        transport.abortConnection()


class ScriptedPacs:
    """Listens on a free port of this process."""

    def __init__(
        self, script: Script, *, extended: dict[str, bytes] | None = None, refuse: str = ""
    ) -> None:
        self.script = script
        self.extended = extended or {}
        self.refuse = refuse
        self.max_pdu = 16384
        self.grants_release = True
        self.seen: list[Command] = []
        self.ends: list[str] = []
        self.open = 0
        #: Most associations open at once.
        self.most = 0
        factory: Any = Factory.forProtocol(lambda: Answering(self))
        factory.noisy = False
        self._port = reactor.listenTCP(0, factory, interface=HOST)
        self.port: int = self._port.getHost().port

    async def __aenter__(self) -> ScriptedPacs:
        return self

    async def __aexit__(self, *unused: object) -> None:
        await self._port.stopListening()

    def requests(self, field: CommandField) -> list[Command]:
        """Requests of one kind."""
        return [command for command in self.seen if command.field == field]
