"""Query/retrieve and verification SCU: C-ECHO, C-FIND, C-MOVE to a PACS (PS3.4 C.4, PS3.7 9.1).

`Requestor` is one outgoing association with awaitable operations, one at a time. Everything that goes
wrong on the way is `PacsCommunicationError` (E003) with what was seen, never a bare socket error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, cast

import attrs
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import DicomSettings, Pacs
from drimbox.dicom.association import (
    Aborted,
    AssociationRejected,
    Event,
    Released,
    ReleaseRequested,
    UpperLayer,
)
from drimbox.dicom.dimse import Command, CommandField, CommandReceived, DataReceived, Status
from drimbox.dicom.negotiation import AssociationAccepted, AssociationRequest, ProposedContext
from drimbox.dicom.transport import AssociationProtocol
from drimbox.errors import PacsCommunicationError

VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
#: Largest identifier accepted in one answer, bytes.
MAX_IDENTIFIER = 4 * 1024 * 1024


@attrs.define
class Response:
    """One response of an operation: its command set, and its data set when it has one."""

    command: Command
    dataset: Dataset | None


class Requestor(AssociationProtocol):
    """One association that we opened to a PACS."""

    log = Logger()

    def __init__(
        self, pacs: Pacs, settings: DicomSettings, clock: IReactorTime, request: AssociationRequest
    ) -> None:
        super().__init__(
            UpperLayer(settings.max_pdu), clock, artim=settings.artim_timeout, idle=pacs.move_ceiling + 60.0
        )
        self.pacs = pacs
        self.extended: Mapping[str, bytes] = {}
        self._request = request
        self._message_id = 0
        self._opened: Deferred[None] | None = Deferred()
        self._released: Deferred[None] | None = None
        self._waiting: Deferred[Response] | None = None
        self._ready: list[Response] = []
        self._current: Command | None = None
        self._dataset = bytearray()
        self._failure: PacsCommunicationError | None = None

    # -- AssociationProtocol -----------------------------------------------------------------------

    def started(self) -> None:
        """Send the request."""
        self.layer.request(self._request)

    def handle(self, event: Event) -> None:
        """Carry out one event."""
        if type(event) is DataReceived:
            self._dataset += event.data
            if len(self._dataset) > MAX_IDENTIFIER:
                self._fail("réponse trop longue")
                self.abort()
            elif event.last:
                self._answer()
        elif type(event) is CommandReceived:
            self._current = event.command
            self._dataset.clear()
            self._context_id = event.context_id
            if not event.command.has_dataset:
                self._answer()
        elif type(event) is AssociationAccepted:
            self.extended = event.extended
            opened, self._opened = self._opened, None
            if opened is not None:
                opened.callback(None)
        elif type(event) is AssociationRejected:
            codes = f"résultat {event.result}, source {event.source}, motif {event.reason}"
            self._fail(f"association rejetée par le PACS ({codes})")
        elif type(event) is ReleaseRequested:
            self.layer.release_reply()
        elif type(event) is Aborted:
            self._fail(event.problem or "association interrompue par le PACS")
        elif type(event) is Released:
            self._fail("association terminée")

    def gone(self) -> None:
        """Wake whoever waits."""
        self._fail("connexion fermée par le PACS")
        released, self._released = self._released, None
        if released is not None:
            released.callback(None)

    # -- operations --------------------------------------------------------------------------------

    async def opened(self, seconds: float) -> None:
        """Wait for the acceptance of the association, at most `seconds`."""
        assert self._opened is not None
        await self._bounded(self._opened, seconds, "pas de réponse à la demande d'association")

    def context(self, abstract_syntax: str) -> int:
        """Return the accepted context of a SOP class. Raises when the PACS refused it."""
        for number, syntax in self.layer.abstract_syntaxes.items():
            if syntax == abstract_syntax and number in self.layer.contexts:
                return number
        raise PacsCommunicationError(f"le PACS {self.pacs.name} refuse la classe SOP {abstract_syntax}")

    def begin(self, abstract_syntax: str, command: Command, identifier: Dataset | None = None) -> int:
        """Send a request; its responses are taken with `response`. Returns the message id."""
        context_id = self.context(abstract_syntax)
        if self._failure is not None:
            raise self._failure
        self._message_id = self._message_id % 65535 + 1
        command.message_id = self._message_id
        command.affected_class = abstract_syntax
        data = None
        if identifier is not None:
            data = encode_dataset(identifier, self.layer.contexts[context_id])
        self.layer.send(context_id, command, data)
        self.flush()
        return self._message_id

    async def response(self, seconds: float) -> Response:
        """Wait for the next response, at most `seconds`. Raises `PacsCommunicationError`."""
        if self._ready:
            return self._ready.pop(0)
        if self._failure is not None:
            raise self._failure
        self._waiting = Deferred()
        response: Response = await self._bounded(self._waiting, seconds, "pas de réponse du PACS")
        return response

    def cancel(self, abstract_syntax: str, message_id: int) -> None:
        """Send a C-CANCEL for a running operation (PS3.7 9.3.2.3)."""
        if self.layer.established:
            command = Command(CommandField.C_CANCEL_RQ, responded_id=message_id)
            self.layer.send(self.context(abstract_syntax), command)
            self.flush()

    async def close(self) -> None:
        """Release the association, or abort it when the PACS does not answer."""
        if not self.layer.established:
            self.abort()
            return
        self._released = Deferred()
        released = self._released
        self.layer.release()
        self.flush()
        timer = self.clock.callLater(5.0, self.abort)
        try:
            await released
        finally:
            if timer.active():
                timer.cancel()

    # -- own ---------------------------------------------------------------------------------------

    async def _bounded(self, waiting: Deferred[Any], seconds: float, problem: str) -> Any:
        timer = self.clock.callLater(seconds, waiting.cancel)
        try:
            return await waiting
        except CancelledError:
            self._waiting = self._opened = None
            self.abort()
            raise PacsCommunicationError(f"{problem} ({self.pacs.name}, {seconds:.0f} s)") from None
        finally:
            if timer.active():
                timer.cancel()

    def _answer(self) -> None:
        command, self._current = self._current, None
        assert command is not None
        dataset = None
        if command.has_dataset:
            try:
                dataset = decode_dataset(bytes(self._dataset), self.layer.contexts[self._context_id])
            except PacsCommunicationError as error:
                self._fail(error.detail)
                self.abort()
                return
        response = Response(command, dataset)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(response)
        else:
            self._ready.append(response)

    def _fail(self, problem: str) -> None:
        if self._failure is None:
            self._failure = PacsCommunicationError(f"{problem} ({self.pacs.name})")
        for waiting in (self._opened, self._waiting):
            if waiting is not None and not waiting.called:
                waiting.errback(self._failure)
        self._opened = self._waiting = None


def encode_dataset(dataset: Dataset, transfer_syntax: str) -> bytes:
    """Write an identifier in the negotiated syntax (Implicit or Explicit VR Little Endian)."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = transfer_syntax == IMPLICIT_LE
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def decode_dataset(data: bytes, transfer_syntax: str) -> Dataset:
    """Read an identifier. Raises `PacsCommunicationError` on garbage."""
    try:
        dataset = read_dataset(BytesIO(data), transfer_syntax == IMPLICIT_LE, True, bytelength=len(data))
        # Elements are decoded lazily: meet the garbage here, not in whoever reads them.
        for _ in dataset.iterall():
            pass
    except Exception as error:
        # pydicom raises whatever its decoding meets.
        raise PacsCommunicationError(f"identifiant illisible : {type(error).__name__}") from error
    return dataset


class Links:
    """Outgoing associations to each PACS, never more at once than configured (DB.SO.121)."""

    def __init__(self, settings: DicomSettings, reactor: Any) -> None:
        self.settings = settings
        self.reactor = reactor
        self._limits: dict[str, DeferredSemaphore] = {}

    async def open(
        self, pacs: Pacs, sop_classes: Sequence[str], extended: Mapping[str, bytes] | None = None
    ) -> Requestor:
        """Open an association that proposes these SOP classes. Raises `PacsCommunicationError`.

        The caller must end it with `done`.
        """
        limit = self._limits.setdefault(pacs.name, DeferredSemaphore(pacs.max_associations))
        await limit.acquire()
        try:
            requestor = await connect(pacs, self.settings, self.reactor, sop_classes, extended or {})
        except BaseException:
            limit.release()
            raise
        metrics.ASSOCIATIONS.labels("requestor", "accepted").inc()
        return requestor

    async def done(self, requestor: Requestor) -> None:
        """End an association and give its place to the next."""
        try:
            await requestor.close()
        finally:
            self._limits[requestor.pacs.name].release()


async def connect(
    pacs: Pacs,
    settings: DicomSettings,
    reactor: Any,
    sop_classes: Sequence[str],
    extended: Mapping[str, bytes],
) -> Requestor:
    """Open one association to `pacs`. Raises `PacsCommunicationError`."""
    request = AssociationRequest(
        calling_ae_title=settings.ae_title,
        called_ae_title=pacs.ae_title,
        contexts=tuple(
            ProposedContext(2 * index + 1, sop_class, (EXPLICIT_LE, IMPLICIT_LE))
            for index, sop_class in enumerate(sop_classes)
        ),
        extended=dict(extended),
    )
    factory: Any = Factory.forProtocol(lambda: Requestor(pacs, settings, reactor, request))
    factory.noisy = False
    endpoint = HostnameEndpoint(reactor, pacs.host, pacs.port, timeout=settings.connect_timeout)
    try:
        requestor = cast(Requestor, await endpoint.connect(factory))
    except (ConnectError, DNSLookupError, OSError, CancelledError) as error:
        metrics.ASSOCIATIONS.labels("requestor", "unreachable").inc()
        raise PacsCommunicationError(f"PACS {pacs.name} injoignable : {error}") from error
    try:
        await requestor.opened(pacs.query_timeout)
    except PacsCommunicationError:
        metrics.ASSOCIATIONS.labels("requestor", "refused").inc()
        raise
    return requestor


async def echo(pacs: Pacs, settings: DicomSettings, reactor: Any) -> float:
    """Verify the link to a PACS (C-ECHO); return the seconds it took. Raises `PacsCommunicationError`."""
    start = reactor.seconds()
    requestor = await connect(pacs, settings, reactor, [VERIFICATION], {})
    try:
        requestor.begin(VERIFICATION, Command(CommandField.C_ECHO_RQ))
        response = await requestor.response(pacs.query_timeout)
        if response.command.status != Status.SUCCESS:
            raise PacsCommunicationError(
                f"C-ECHO : état 0x{response.command.status or 0:04X} ({pacs.name})"
            )
        return float(reactor.seconds() - start)
    finally:
        await requestor.close()
