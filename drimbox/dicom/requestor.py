"""Query/retrieve and verification SCU: C-ECHO, C-FIND, C-MOVE to a PACS (PS3.4 C.4, PS3.7 9.1).

`Requestor` is one outgoing association with awaitable operations, one at a time. Everything that goes
wrong on the way is `PacsCommunicationError` (E003) with what was seen, never a bare socket error. A
response must answer the operation that runs: anything else ends the association, so that a PACS can
neither fill our memory with what nobody asked for nor have one answer taken for another.
"""

from __future__ import annotations

import itertools
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs
from pydicom.dataset import Dataset
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
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
from drimbox.dicom.identifiers import (
    EXPLICIT_LE,
    IMPLICIT_LE,
    MAX_IDENTIFIER,
    Identifier,
    encode_dataset,
    read_identifier,
)
from drimbox.dicom.negotiation import AssociationAccepted, AssociationRequest, ProposedContext
from drimbox.dicom.states import State
from drimbox.dicom.transport import AssociationProtocol
from drimbox.errors import PacsCommunicationError
from drimbox.trust.reach import reason_of

VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
#: Seconds the PACS gets to grant a release.
_RELEASE = 5.0
#: Message ids of this process, each used once in 65,535. Not counted per association: a PACS puts the id
#: of the C-MOVE into each C-STORE, and one that comes late must not look like one of the next move.
_NUMBERS = (number % 65535 + 1 for number in itertools.count(secrets.randbelow(65535)))
#: What a response's command field adds to its request's (PS3.7 E.1).
_RESPONSE = 0x8000
_PENDING = (Status.PENDING, Status.PENDING_WARNING)


class PacsBusy(PacsCommunicationError):
    """No association for the moment: ours are all in use, or the PACS says that it has none to give."""


@attrs.define
class Response:
    """One response of an operation: its command set, and for C-FIND its data set when it has one."""

    command: Command
    dataset: Identifier | None

    @property
    def final(self) -> bool:
        """True when no other response of the operation follows."""
        return self.command.status not in _PENDING


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
        self._opened: Deferred[None] | None = Deferred()
        self._ended: Deferred[None] = Deferred()
        self._waiting: Deferred[Response] | None = None
        self._ready: deque[Response] = deque()
        #: True while nobody waits for anything but the last response.
        self._final_only = False
        #: The request that runs, None between two.
        self._running: Command | None = None
        self._current: Command | None = None
        self._context_id = 0
        self._dataset = bytearray()
        self._failure: PacsCommunicationError | None = None

    # -- AssociationProtocol -----------------------------------------------------------------------

    def started(self) -> None:
        """Send the request."""
        self.layer.request(self._request)

    def handle(self, event: Event) -> None:
        """Carry out one event."""
        if type(event) is DataReceived:
            self._data(event)
        elif type(event) is CommandReceived:
            self._command(event)
        elif type(event) is AssociationAccepted:
            self.extended = event.extended
            opened, self._opened = self._opened, None
            if opened is not None:
                opened.callback(None)
        elif type(event) is AssociationRejected:
            problem = f"association rejetée par le PACS : {event.words}"
            self._fail(problem, PacsBusy if event.transient else PacsCommunicationError)
        elif type(event) is ReleaseRequested:
            if not self.layer.close_wanted:
                self.layer.release_reply()
            self._fail("association terminée par le PACS")
        elif type(event) is Aborted:
            stray = f"la réponse n'est pas celle d'un PACS DICOM ({event.problem})"
            self._fail(stray if event.problem else "association interrompue par le PACS")
        elif type(event) is Released:
            self._fail("association terminée")

    def gone(self) -> None:
        """Wake whoever waits."""
        self._fail("connexion fermée par le PACS")
        self._ended.callback(None)

    def abort(self) -> None:
        """End the association at once, and wake whoever waits."""
        super().abort()
        self._fail("association interrompue")

    # -- operations --------------------------------------------------------------------------------

    async def opened(self, seconds: float) -> None:
        """Wait for the acceptance of the association, at most `seconds`."""
        if self._failure is not None:
            raise self._failure
        if self._opened is None:
            return
        await self._bounded(self._opened, seconds, "pas de réponse à la demande d'association")

    def context(self, abstract_syntax: str) -> int:
        """Return the accepted context of a SOP class. Raises when the PACS refused it."""
        for number, syntax in self.layer.abstract_syntaxes.items():
            if syntax == abstract_syntax and number in self.layer.contexts:
                return number
        raise PacsCommunicationError(f"le PACS {self.pacs.name} refuse la classe SOP {abstract_syntax}")

    def begin(self, abstract_syntax: str, command: Command, identifier: Dataset | None = None) -> int:
        """Send a request; its responses are taken with `response`. Returns the message id.

        Raises `PacsCommunicationError` when the association is over or does not carry that SOP class.
        """
        if self._failure is not None:
            raise self._failure
        if not self.layer.established:
            raise PacsCommunicationError(f"association terminée ({self.pacs.name})")
        context_id = self.context(abstract_syntax)
        number = command.message_id = next(_NUMBERS)
        command.affected_class = abstract_syntax
        data = None
        if identifier is not None:
            data = encode_dataset(identifier, self.layer.contexts[context_id])
        self.layer.send(context_id, command, data)
        self._running = command
        self.flush()
        return number

    async def response(self, seconds: float) -> Response:
        """Wait for the next response, at most `seconds`. Raises `PacsCommunicationError`."""
        if self._ready:
            return self._ready.popleft()
        if self._failure is not None:
            raise self._failure
        self._waiting = Deferred()
        response: Response = await self._bounded(self._waiting, seconds, "pas de réponse du PACS")
        return response

    async def final(self, seconds: float) -> Response:
        """Wait for the final response, at most `seconds`; those before it are dropped.

        A PACS sends one for each image: to wake somebody for each costs a delivery a twentieth of its time.
        Raises `PacsCommunicationError`.
        """
        self._final_only = True
        try:
            while True:
                response = await self.response(seconds)
                if response.final:
                    return response
        finally:
            self._final_only = False

    def cancel(self, abstract_syntax: str, message_id: int) -> None:
        """Send a C-CANCEL for a running operation (PS3.7 9.3.2.3)."""
        if self.layer.established:
            command = Command(CommandField.C_CANCEL_RQ, responded_id=message_id)
            self.layer.send(self.context(abstract_syntax), command)
            self.flush()

    async def close(self) -> None:
        """Release the association, or abort it when something still runs or the PACS does not grant it.

        Returns when the connection is gone, so that its place at the PACS is free.
        """
        if self.layer.established and self._running is None:
            self.layer.release()
            self.flush()
        else:
            self.abort()
        timer = self.clock.callLater(_RELEASE, self.abort)
        try:
            await self._ended
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
            self._fail(f"{problem} en {seconds:.0f} s")
            self.abort()
            assert self._failure is not None
            raise self._failure from None
        finally:
            if timer.active():
                timer.cancel()

    def _command(self, event: CommandReceived) -> None:
        command, running = event.command, self._running
        if self.layer.state is State.AWAITING_RELEASE_REPLY:
            # On its way while we asked for the end: nobody waits for it.
            return
        if (
            running is None
            or command.field != running.field | _RESPONSE
            or command.responded_id != running.message_id
            or command.status is None
        ):
            self._refuse("réponse à une autre demande que la nôtre")
            return
        self._current = command
        self._dataset.clear()
        self._context_id = event.context_id
        if not command.has_dataset:
            self._answer(command)

    def _data(self, event: DataReceived) -> None:
        command = self._current
        if command is None:
            return
        if command.field == CommandField.C_FIND_RSP:
            # A C-MOVE response may list thousands of failed instances: nobody asks for it, it is dropped.
            self._dataset += event.data
        if len(self._dataset) > MAX_IDENTIFIER:
            self._refuse("réponse trop longue")
        elif event.last:
            self._answer(command)

    def _refuse(self, problem: str) -> None:
        self._current = None
        self._fail(problem)
        self.abort()

    def _answer(self, command: Command) -> None:
        self._current = None
        dataset = None
        if command.has_dataset and command.field == CommandField.C_FIND_RSP:
            try:
                dataset = read_identifier(bytes(self._dataset), self.layer.contexts[self._context_id])
            except PacsCommunicationError as error:
                self._refuse(error.detail)
                return
        response = Response(command, dataset)
        if response.final:
            self._running = None
        elif self._final_only:
            return
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(response)
        else:
            self._ready.append(response)

    def _fail(self, problem: str, kind: type[PacsCommunicationError] = PacsCommunicationError) -> None:
        if self._failure is None:
            self._failure = kind(f"{problem} ({self.pacs.name})")
        opened, self._opened = self._opened, None
        waiting, self._waiting = self._waiting, None
        for each in (opened, waiting):
            if each is not None and not each.called:
                each.errback(self._failure)


class Links:
    """Outgoing associations to each PACS, never more at once than configured (DB.SO.121)."""

    def __init__(self, settings: DicomSettings, reactor: Any) -> None:
        self.settings = settings
        self.reactor = reactor
        self._limits: dict[str, DeferredSemaphore] = {}

    async def open(
        self,
        pacs: Pacs,
        sop_classes: Sequence[str],
        extended: Mapping[str, bytes] | None = None,
        *,
        wait: float | None = None,
    ) -> Requestor:
        """Open an association that proposes these SOP classes. The caller must end it with `done`.

        `wait` bounds the time spent until another association of ours ends, in seconds; the time-out of a
        query when not given. Raises `PacsBusy` or `PacsCommunicationError`.
        """
        limit = self._limits.setdefault(pacs.name, DeferredSemaphore(pacs.max_associations))
        await self._acquire(limit, pacs, pacs.query_timeout if wait is None else wait)
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

    async def _acquire(self, limit: DeferredSemaphore, pacs: Pacs, wait: float) -> None:
        waiting = limit.acquire()
        timer = self.reactor.callLater(wait, waiting.cancel)
        try:
            await waiting
        except CancelledError:
            raise PacsBusy(f"{pacs.max_associations} associations déjà ouvertes vers {pacs.name}") from None
        finally:
            if timer.active():
                timer.cancel()


async def connect(
    pacs: Pacs,
    settings: DicomSettings,
    reactor: Any,
    sop_classes: Sequence[str],
    extended: Mapping[str, bytes],
) -> Requestor:
    """Open one association to `pacs`, at whose end the caller must `close` it.

    Raises `PacsCommunicationError`; nothing is left open then.
    """
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
    except (ConnectError, ConnectingCancelledError, CancelledError, OSError) as error:
        metrics.ASSOCIATIONS.labels("requestor", "unreachable").inc()
        raise PacsCommunicationError(f"PACS {pacs.name} injoignable : {reason_of(error)}") from error
    try:
        await requestor.opened(pacs.query_timeout)
    except PacsCommunicationError:
        metrics.ASSOCIATIONS.labels("requestor", "refused").inc()
        await requestor.close()
        raise
    return requestor


async def verify(requestor: Requestor) -> None:
    """Send a C-ECHO on an open association. Raises `PacsCommunicationError`."""
    pacs = requestor.pacs
    requestor.begin(VERIFICATION, Command(CommandField.C_ECHO_RQ))
    response = await requestor.response(pacs.query_timeout)
    if response.command.status != Status.SUCCESS:
        raise PacsCommunicationError(f"C-ECHO : état 0x{response.command.status or 0:04X} ({pacs.name})")


async def echo(pacs: Pacs, settings: DicomSettings, reactor: Any) -> float:
    """Verify the link to a PACS (C-ECHO); return the seconds it took. Raises `PacsCommunicationError`."""
    start = reactor.seconds()
    requestor = await connect(pacs, settings, reactor, [VERIFICATION], {})
    try:
        await verify(requestor)
        return float(reactor.seconds() - start)
    finally:
        await requestor.close()
