"""The instances of one move on their way to one answer: part by part, in order, within bounds.

Every C-STORE becomes a part. Its first bytes are held until study, series and instance are verified in
the data set itself; then part header, Part 10 header and everything after go straight through. Parts
never interleave: what comes on a second association waits for its turn. When the client is slower than
the PACS, bytes are held up to the window; then the associations are paused, no longer than the PACS's
patience; then the rest goes through the spool. The C-STORE response is sent when the last byte is in the
window or the spool, never at the client's pace (retrieval-engine.md, rules 1, 3, 4).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from drimbox import metrics
from drimbox.dicom.dimse import Command, Status
from drimbox.dicom.moving import Channel
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.syntaxes import choose, served_as
from drimbox.dicom.targets import decodable
from drimbox.errors import ImageError
from drimbox.model import is_uid
from drimbox.source.conversion import Conversion
from drimbox.source.handling import Handling
from drimbox.source.outflow import Outflow
from drimbox.source.parts import CollectedPart, Part, PartRefused
from drimbox.wado.accept import Acceptable


@attrs.define
class Tally:
    """What went through one transfer."""

    #: Instances written whole to the answer.
    delivered: set[str] = attrs.field(factory=set)
    #: Refused, with the status each was answered with.
    refused: dict[str, int] = attrs.field(factory=dict)
    #: Transfer syntaxes of refused presentation contexts.
    unacceptable: set[str] = attrs.field(factory=set)
    #: Transfer syntaxes chosen although the PACS proposed others that the client takes too.
    chosen_among: set[str] = attrs.field(factory=set)
    #: Instances by transfer syntax (STF09).
    syntaxes: dict[str, int] = attrs.field(factory=dict)


_AS_IT_IS = Handling()


class Transfer:
    """Receives the instances of one move, writes them to one answer (a `MoveReceiver`).

    `due` is what the KOS lists of the series, None for the reference study; with `only`, whatever else of
    the series the PACS sends is dropped; `avoid` are transfer syntaxes that failed in an earlier try of
    the same move; `handling` is what the site's options do to each instance, `refuse` is called when one
    of them forbids the whole answer. With a `conversion`, what the client does not take is accepted all
    the same and transcoded, instance by instance of at most `max_collected` bytes.
    """

    log = Logger()

    def __init__(
        self,
        *,
        study_uid: str,
        series_uid: str,
        due: Collection[str] | None,
        acceptable: Acceptable,
        outflow: Outflow,
        clock: IReactorTime,
        avoid: Collection[str] = (),
        handling: Handling = _AS_IT_IS,
        refuse: Callable[[ImageError], None] = lambda error: None,
        conversion: Conversion | None = None,
        max_collected: int = 0,
        only: str | None = None,
    ) -> None:
        self.tally = Tally()
        self.last_activity = 0.0
        self._study_uid = study_uid
        self._series_uid = series_uid
        self._due = frozenset(due) if due is not None else None
        self._only = only
        self._acceptable = acceptable
        self._outflow = outflow
        self._clock = clock
        self._avoid = frozenset(avoid)
        self._handling = handling
        self._refuse_all = refuse
        self._conversion = conversion
        self._max_collected = max_collected
        #: The part being received on each association; None while its bytes are dropped.
        self._receiving: dict[Channel, tuple[Command, Part | None, int]] = {}
        self._seen: set[str] = set()
        self._discarding = False
        outflow.attach(self._part_sent, self._let_go)

    # -- MoveReceiver ------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """True while an instance is half received."""
        return bool(self._receiving)

    @property
    def held_back(self) -> bool:
        """True while the PACS waits for us because the client is slow."""
        return self._outflow.held_back

    @property
    def satisfied(self) -> bool:
        """True when everything the KOS lists has been received whole."""
        return self._due is not None and not self._receiving and self._due <= self._seen

    def choose(self, context: ProposedContext) -> str | None:
        """Negotiate a storage context by the client's Accept (DB.SO.85)."""
        proposed = [syntax for syntax in context.transfer_syntaxes if syntax not in self._avoid]
        syntax = choose(proposed, self._acceptable)
        if syntax is None:
            self.tally.unacceptable.update(context.transfer_syntaxes)
            return None
        others = [other for other in proposed if other != syntax]
        if choose(others, self._acceptable) is not None or self._decodable(others) is not None:
            self.tally.chosen_among.add(syntax)
        return syntax

    def second_choice(self, context: ProposedContext) -> str | None:
        """Take a class of which the client accepts nothing as it is, in a syntax we can read."""
        proposed = [syntax for syntax in context.transfer_syntaxes if syntax not in self._avoid]
        syntax = self._decodable(proposed)
        if (
            syntax is not None
            and self._decodable([each for each in proposed if each != syntax]) is not None
        ):
            self.tally.chosen_among.add(syntax)
        return syntax

    def opened(self, channel: Channel) -> None:
        """An association of this move is established."""
        self._outflow.join(channel)

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        """Begin a part."""
        self.last_activity = self._clock.seconds()
        instance = command.affected_instance or ""
        if self._discarding:
            self._receiving[channel] = (command, None, Status.OUT_OF_RESOURCES)
        elif not is_uid(instance):
            self.tally.refused[""] = Status.CANNOT_UNDERSTAND
            self._receiving[channel] = (command, None, Status.CANNOT_UNDERSTAND)
        elif self._handling.roots.excludes(instance) or self._only not in (None, instance):
            # What stays inside (DB.SO.200), or was not asked for, is no failure of the PACS's.
            self._receiving[channel] = (command, None, Status.SUCCESS)
        elif instance in self._seen or any(
            part is not None and part.instance_uid == instance for _, part, _ in self._receiving.values()
        ):
            # A repeated instance: answered with success, because stock Orthanc abandons the whole move
            # at the first failure status, and dropped.
            self._receiving[channel] = (command, None, Status.SUCCESS)
        else:
            self._receiving[channel] = (
                command,
                self._part(channel, command, transfer_syntax),
                Status.SUCCESS,
            )

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Take a piece of the part; answer the C-STORE as soon as the last one is here.

        The answer goes out before the piece is written on: the PACS sends the next image while this one
        is being encrypted. What the answer promises is in memory by then; the delivery itself is only
        complete when every part has been written (`Outflow.complete`).
        """
        self.last_activity = self._clock.seconds()
        command, part, status = self._receiving[channel]
        chunks: list[Buffer] = []
        if part is not None:
            try:
                chunks = part.feed(piece, last)
            except PartRefused as refusal:
                self._refuse(part, refusal)
                part, status = None, refusal.status
                self._receiving[channel] = (command, part, status)
        if last:
            del self._receiving[channel]
            if part is not None:
                self._seen.add(part.instance_uid)
            channel.respond(command, status)
        if isinstance(part, CollectedPart):
            self._collect(part, len(piece), last)
        elif part is not None:
            self._outflow.push(part, chunks)
        if last:
            self._outflow.gather(channel, False)

    def closed(self, channel: Channel, clean: bool) -> None:
        """An association is over; a half-received part can never be completed."""
        self._outflow.leave(channel)
        received = self._receiving.pop(channel, None)
        if received is not None and received[1] is not None and not self._discarding:
            self._drop(received[1], "association ended inside an instance")

    # -- for the delivery --------------------------------------------------------------------------

    def discard(self) -> None:
        """Drop whatever still arrives: nobody reads the answer any more."""
        self._discarding = True
        if self._conversion is not None:
            self._conversion.close()
        for channel, (command, part, _) in list(self._receiving.items()):
            # The C-STORE in flight is answered, so that the PACS looks at our C-CANCEL.
            status = Status.SUCCESS if part is not None else Status.OUT_OF_RESOURCES
            self._receiving[channel] = (command, None, status)

    @property
    def missing(self) -> frozenset[str]:
        """Instances the KOS lists that did not arrive whole."""
        return frozenset() if self._due is None else self._due - self._seen

    @property
    def unexpected(self) -> frozenset[str]:
        """Instances delivered that the KOS does not list."""
        return frozenset() if self._due is None else frozenset(self._seen) - self._due

    @property
    def received(self) -> int:
        """Number of distinct instances received whole."""
        return len(self._seen)

    # -- own ---------------------------------------------------------------------------------------

    def _decodable(self, proposed: list[str]) -> str | None:
        return decodable(proposed) if self._conversion is not None else None

    def _part(self, channel: Channel, command: Command, transfer_syntax: str) -> Part:
        """Make the part of an instance: passed on, or kept whole when it cannot leave as it comes."""
        leaves_as = served_as(transfer_syntax)
        if leaves_as is not None and self._acceptable.rank(leaves_as) is not None:
            return Part(
                command,
                transfer_syntax,
                study_uid=self._study_uid,
                series_uid=self._series_uid,
                channel=channel,
                handling=self._handling,
            )
        part = CollectedPart(
            command,
            transfer_syntax,
            study_uid=self._study_uid,
            series_uid=self._series_uid,
            channel=channel,
            handling=self._handling,
            max_bytes=self._max_collected,
        )
        # Its place is that of its arrival, whenever the workers are done with it.
        self._outflow.enlist(part)
        self._outflow.gather(channel, True)
        return part

    def _collect(self, part: CollectedPart, size: int, last: bool) -> None:
        if last:
            # It waits for a codec, not for its association, which has to stop like any other.
            part.channel = None
        part.weighed += size
        self._outflow.weigh(size)
        if last and self._conversion is not None:
            self._conversion.add(part)

    def _drop(self, part: Part, problem: str) -> None:
        self._outflow.drop(part, problem)
        if isinstance(part, CollectedPart):
            self._outflow.weigh(-part.weighed)

    def _refuse(self, part: Part, refusal: PartRefused) -> None:
        self.tally.refused[part.instance_uid] = refusal.status
        metrics.STORE_REFUSED.labels("dataset").inc()
        self.log.warn("instance refused: {problem}", problem=str(refusal))
        self._drop(part, str(refusal))
        if refusal.error is not None:
            self._refuse_all(refusal.error)

    def _let_go(self) -> None:
        """The associations are read again: the silence so far was ours, not the PACS's."""
        self.last_activity = max(self.last_activity, self._clock.seconds())

    def _part_sent(self, part: Part) -> None:
        self.tally.delivered.add(part.instance_uid)
        self.tally.syntaxes[part.syntax] = self.tally.syntaxes.get(part.syntax, 0) + 1
