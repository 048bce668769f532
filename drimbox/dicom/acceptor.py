"""Storage and verification SCP: hands each incoming association to the move it belongs to.

What is verified, in this order (retrieval-engine.md, rule 1): the called AE title is ours; for storage,
it is leased; calling AE title and address are among those configured for that PACS; the Move Originator
of each C-STORE, when the PACS names one, is our C-MOVE. Study and series of the data set are the
receiver's to verify. C-ECHO is answered on every title of ours, at any time. On the title that is our own,
not one of the pool, a PACS may store key objects (IOCM, DB.SO.25).

What a caller may take is bounded before it has said a word: callers that are no PACS of ours share a small
part of the connections, so that they cannot keep the images out. Several PDUs may come in one piece, so the
association may be over when its earlier events are carried out: then they are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet import protocol
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import DicomSettings, Pacs
from drimbox.dicom.addresses import REFRESH, Addresses, resolve
from drimbox.dicom.aetitles import Pools, Title
from drimbox.dicom.association import Aborted, Event, Released, ReleaseRequested, UpperLayer
from drimbox.dicom.dimse import Command, CommandField, CommandReceived, DataReceived, Status
from drimbox.dicom.moving import Receiver
from drimbox.dicom.negotiation import AssociationRequest, ProposedContext
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.states import State
from drimbox.dicom.transport import AssociationProtocol
from drimbox.limits import Refused, Why

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
#: A-ASSOCIATE-RJ: permanent, by the user, called or calling AE title not recognised (PS3.8 Table 9-21).
_CALLED_UNKNOWN = (1, 1, 7)
_CALLING_UNKNOWN = (1, 1, 3)
#: Transient, by the provider (presentation), local limit exceeded.
_LIMIT = (2, 3, 2)


#: Connections above `max_associations` that may be open for as long as a rejection or an end takes.
_MARGIN = 16
#: Connections that callers from addresses of no PACS may hold at least, and as a part of all.
_STRANGERS, _STRANGERS_PART = 8, 4


class InboundAssociation(AssociationProtocol):
    """One association opened to us."""

    log = Logger()

    def __init__(
        self, owner: AcceptorFactory, clock: IReactorTime, pacses: frozenset[str] = frozenset()
    ) -> None:
        settings = owner.settings
        super().__init__(
            UpperLayer(settings.max_pdu), clock, artim=settings.artim_timeout, idle=settings.idle_timeout
        )
        #: Names of the PACS that call from its address; none for a stranger.
        self.pacses = pacses
        #: True once accepted: it counts among the associations that are limited.
        self.accepted = False
        self._owner = owner
        self._title: Title | None = None
        #: Whom the instances are for, None once the lease is over; and who was told of this association.
        self._receiver: Receiver | None = None
        self._opened: Receiver | None = None
        self._storing: Command | None = None
        self._storing_context = 0
        self._refused_status: int | None = None
        self._clean = False

    def started(self) -> None:
        """Wait for the request, no longer than ARTIM."""
        self.layer.transport_indication()

    def handle(self, event: Event) -> None:
        """Carry out one event."""
        if type(event) is DataReceived:
            self._data(event.data, event.last)
        elif type(event) is CommandReceived:
            self._command(event.context_id, event.command)
        elif type(event) is AssociationRequest:
            self._requested(event)
        elif type(event) is ReleaseRequested:
            if not self.layer.close_wanted:
                self._clean = True
                self.layer.release_reply()
        elif type(event) is Released:
            self._clean = True
        elif type(event) is Aborted:
            self._aborted(event)

    def gone(self) -> None:
        """Tell the move, then the pool: in this order, so that the move ends before its title is free."""
        self._owner.lost(self)
        opened, self._opened, self._receiver = self._opened, None, None
        try:
            if opened is not None:
                opened.closed(self, self._clean and self._storing is None)
        finally:
            if self._title is not None:
                self._title.detached(self)

    # -- Channel -----------------------------------------------------------------------------------

    def respond(self, command: Command, status: int) -> None:
        """Answer a C-STORE (PS3.7 9.1.1)."""
        if not self.layer.established:
            return
        if status != Status.SUCCESS:
            metrics.STORE_REFUSED.labels(f"0x{status:04X}").inc()
        self.layer.send(
            self._storing_context,
            Command(
                CommandField.C_STORE_RSP,
                responded_id=command.message_id,
                affected_class=command.affected_class,
                affected_instance=command.affected_instance,
                status=status,
            ),
        )
        self.flush()

    # -- own ---------------------------------------------------------------------------------------

    def _aborted(self, event: Aborted) -> None:
        self._clean = False
        if event.problem:
            metrics.ASSOCIATIONS.labels("acceptor", "aborted").inc()
            self.log.warn(
                "association from {peer} aborted: {problem}", peer=self.peer_address, problem=event.problem
            )

    def _requested(self, request: AssociationRequest) -> None:
        if self.layer.state is not State.AWAITING_LOCAL_ANSWER:
            return
        if self._owner.full(self.pacses):
            metrics.ASSOCIATIONS.labels("acceptor", "limit").inc()
            self.layer.reject(*_LIMIT)
            return
        title = self._owner.pools.find(request.called_ae_title)
        if title is None and request.called_ae_title != self._owner.settings.ae_title:
            metrics.ASSOCIATIONS.labels("acceptor", "called_unknown").inc()
            self.log.warn("association from {peer} to an unknown AE title refused", peer=self.peer_address)
            self.layer.reject(*_CALLED_UNKNOWN)
            return
        receiver = title.receiver if title is not None else self._notes(request)
        if title is not None and receiver is not None and not self._trusted(title.pacs, request):
            if not request.proposes(VERIFICATION):
                metrics.ASSOCIATIONS.labels("acceptor", "calling_unknown").inc()
                self.layer.reject(*_CALLING_UNKNOWN)
                return
            receiver = None
        self.layer.accept(self._negotiate(request.contexts, receiver))
        self.accepted = True
        metrics.ASSOCIATIONS.labels("acceptor", "accepted").inc()
        if receiver is not None:
            self._title = title
            self._receiver = self._opened = receiver
            if title is not None:
                title.attached(self)
            receiver.opened(self)
        elif title is not None and not request.only(VERIFICATION) and self._trusted(title.pacs, request):
            # What is left of an earlier move. A stranger's attempts must not keep the title busy for ever.
            title.disturbed()

    def _notes(self, request: AssociationRequest) -> Receiver | None:
        """Return what takes the key objects of a PACS, None for anybody else."""
        notes = self._owner.notes
        if notes is None or request.only(VERIFICATION):
            return None
        pacs = next(
            (pool.pacs for pool in self._owner.pools.by_pacs.values() if self._is(pool.pacs, request)), None
        )
        return notes(pacs.name, self.peer_address) if pacs is not None else None

    def _is(self, pacs: Pacs, request: AssociationRequest) -> bool:
        titles = pacs.store_ae_titles or (pacs.ae_title,)
        allowed = self._owner.addresses[pacs.name].allow(self.peer_address)
        return request.calling_ae_title in titles and allowed

    def _trusted(self, pacs: Pacs, request: AssociationRequest) -> bool:
        trusted = self._is(pacs, request)
        if not trusted:
            metrics.STORE_REFUSED.labels("calling").inc()
            self.log.warn(
                "association for {pacs} refused: {calling!r} from {peer} is not configured",
                pacs=pacs.name,
                calling=request.calling_ae_title,
                peer=self.peer_address,
            )
        return trusted

    @staticmethod
    def _negotiate(contexts: Sequence[ProposedContext], receiver: Receiver | None) -> dict[int, str]:
        """Accept what the receiver takes as it is; for a class of which it takes nothing, the next best."""
        accepted: dict[int, str] = {}
        classes = set()
        for context in contexts:
            if context.abstract_syntax == VERIFICATION:
                known = (each for each in context.transfer_syntaxes if each in (EXPLICIT_LE, IMPLICIT_LE))
                syntax = next(known, None)
            else:
                syntax = receiver.choose(context) if receiver is not None else None
            if syntax is not None:
                accepted[context.id] = syntax
                classes.add(context.abstract_syntax)
        if receiver is not None:
            for context in contexts:
                if context.abstract_syntax not in classes and context.abstract_syntax != VERIFICATION:
                    syntax = receiver.second_choice(context)
                    if syntax is not None:
                        accepted[context.id] = syntax
        return accepted

    def _command(self, context_id: int, command: Command) -> None:
        self._storing_context = context_id
        verification = self.layer.abstract_syntaxes[context_id] == VERIFICATION
        if command.field == CommandField.C_ECHO_RQ and verification:
            if self.layer.established:
                self.layer.send(
                    context_id,
                    Command(
                        CommandField.C_ECHO_RSP,
                        responded_id=command.message_id,
                        affected_class=VERIFICATION,
                        status=Status.SUCCESS,
                    ),
                )
        elif command.field == CommandField.C_STORE_RQ and command.has_dataset and not verification:
            self._store(context_id, command)
        elif command.field == CommandField.C_CANCEL_RQ:
            return
        else:
            self.log.warn("operation 0x{field:04X} refused: association aborted", field=command.field)
            self.layer.abort(provider=True)

    def _store(self, context_id: int, command: Command) -> None:
        self._storing = command
        self._refused_status = self._refusal(context_id, command)
        if self._refused_status is None:
            assert self._receiver is not None
            self._receiver.store(self, command, self.layer.contexts[context_id])

    def _refusal(self, context_id: int, command: Command) -> int | None:
        """Return the status to refuse this C-STORE with, None to let its receiver have it."""
        title = self._title
        if title is None and self._receiver is not None:
            known = command.affected_class == self.layer.abstract_syntaxes[context_id]
            return None if known else Status.SOP_CLASS_NOT_SUPPORTED
        if self._receiver is None or title is None or title.receiver is not self._receiver:
            # The lease is over: what arrives late belongs to nobody.
            self._receiver = None
            return Status.NOT_AUTHORISED
        if command.affected_class != self.layer.abstract_syntaxes[context_id]:
            return Status.SOP_CLASS_NOT_SUPPORTED
        originator, number = command.originator_ae_title, command.originator_message_id
        if originator and originator != self._owner.settings.ae_title:
            return Status.NOT_AUTHORISED
        if number is not None and number != title.message_id:
            return Status.NOT_AUTHORISED
        return None

    def _data(self, piece: Buffer, last: bool) -> None:
        command = self._storing
        if command is None:
            return
        if last:
            self._storing = None
        if self._refused_status is not None:
            if last:
                self.respond(command, self._refused_status)
        elif self._receiver is not None:
            self._receiver.data(self, piece, last)


class AcceptorFactory(protocol.Factory):
    """Listens for the PACS and for whoever checks that we are there."""

    noisy = False
    log = Logger()

    def __init__(
        self,
        settings: DicomSettings,
        pools: Pools,
        clock: IReactorTime,
        *,
        notes: Callable[[str, str], Receiver] | None = None,
        refused: Refused = lambda address, why: None,
    ) -> None:
        """`notes` makes what takes the key objects of a PACS, by its name, from an address.

        `refused` is told of every connection that is closed at once.
        """
        self.settings = settings
        self.notes = notes
        self._refused = refused
        self.pools = pools
        self.addresses = {name: Addresses(pool.pacs) for name, pool in pools.by_pacs.items()}
        self._clock = clock
        self._open: set[InboundAssociation] = set()
        self._refresh: IDelayedCall | None = None

    def startFactory(self) -> None:
        """The door opens: resolve the host names of the configuration, now and from time to time."""
        if any(each.names for each in self.addresses.values()):
            self._refresh = self._clock.callLater(REFRESH, self.startFactory)
            resolve(self._clock, self.addresses)

    def stopFactory(self) -> None:
        """The door closes."""
        if self._refresh is not None and self._refresh.active():
            self._refresh.cancel()

    def buildProtocol(self, addr: IAddress | None) -> InboundAssociation | None:
        """Make the protocol of one connection; None, which closes it, when there are too many."""
        host = str(getattr(addr, "host", ""))
        pacses = frozenset(name for name, each in self.addresses.items() if each.allow(host))
        why = self._no_room(pacses)
        if why is not None:
            metrics.ASSOCIATIONS.labels("acceptor", "limit").inc()
            self._refused(host, why)
            return None
        association = InboundAssociation(self, self._clock, pacses)
        self._open.add(association)
        return association

    def full(self, pacses: frozenset[str]) -> bool:
        """Say whether as many associations are accepted as a caller of these PACS may have."""
        accepted = [each.pacses for each in self._open if each.accepted and each.pacses]
        return bool(pacses) and self._over(self.settings.max_associations, pacses, accepted) is not None

    def _no_room(self, pacses: frozenset[str]) -> Why | None:
        """Return why a caller from an address of these PACS gets no connection, None when it does."""
        limit = self.settings.max_associations
        if not pacses:
            strangers = sum(not each.pacses for each in self._open)
            return Why.STRANGER if strangers >= max(_STRANGERS, limit // _STRANGERS_PART) else None
        return self._over(limit + _MARGIN, pacses, [each.pacses for each in self._open if each.pacses])

    def _over(self, limit: int, pacses: frozenset[str], inside: Sequence[frozenset[str]]) -> Why | None:
        """Hold one more beside those `inside` against a limit, and against what is left for others.

        A PACS may always have as many as its pool has titles; more, only of what the others do not need for
        theirs.
        """
        if len(inside) >= limit:
            return Why.TOTAL
        missing = {
            name: len(pool.titles) - sum(name in each for each in inside)
            for name, pool in self.pools.by_pacs.items()
        }
        if any(missing[name] > 0 for name in pacses):
            return None
        kept = sum(max(0, count) for name, count in missing.items() if name not in pacses)
        return Why.ADDRESS if len(inside) + kept >= limit else None

    def lost(self, association: InboundAssociation) -> None:
        """Forget a connection that is over."""
        self._open.discard(association)

    def abort_all(self) -> None:
        """End every association, at shutdown."""
        for association in list(self._open):
            association.abort()
