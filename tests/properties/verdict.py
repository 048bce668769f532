"""What must have held in every history, whatever the PACS and the clients did."""

from __future__ import annotations

from drimbox import metrics
from drimbox.dicom.aetitles import TitleState
from drimbox.dicom.dimse import Status
from drimbox.dicom.syntaxes import served_as
from drimbox.errors import TooManyRequests
from tests.properties.archive import MoveServed, Sent
from tests.properties.clients import ACCEPTS, Client, Part, Wish
from tests.properties.plans import WHOLE
from tests.properties.world import Lease, World


def judge(world: World) -> None:
    """Raise `AssertionError` for the first promise broken."""
    assert not world.failures, world.failures[0]
    for client in world.clients:
        _Answer(world, client).judge()
    _statuses(world)
    for move in world.archive.moves:
        assert not move.impatient or _may_wait(world, move), "the PACS gave up waiting for us"
    _titles(world)
    _nothing_left(world)


def _may_wait(world: World, move: MoveServed) -> bool:
    """True when an association may have to wait for the end of what comes on another one.

    Without room on disk; or, with little memory, for an instance that its codec needs whole and that the
    PACS is slow to send: neither disk nor client can make the room that it takes.
    """
    conditions, wish = world.history.conditions, world.movers[move].wish
    astray = any("astray" in oddity.kind for each in world.archive.moves for oddity in each.plan.oddities)
    several = move.plan.lanes > 1 or move.plan.linger > 0 or astray
    if not conditions.roomy:
        return several
    short = min(conditions.window, conditions.total_window) < 1 << 20
    return several and short and not _as_it_is(wish)


def _as_it_is(wish: Wish) -> bool:
    """True when the client takes what the PACS holds without a codec."""
    leaves_as = served_as(wish.held.instances[0].syntax)
    return leaves_as is not None and ACCEPTS[wish.accept].rank(leaves_as) is not None


class _Answer:
    """One answer held against what the PACS sent for it."""

    def __init__(self, world: World, client: Client) -> None:
        self.world = world
        self.client = client
        self.wish = client.wish
        self.held = client.wish.held
        self.leases = [lease for lease in world.leases if lease.client is client]
        self.moves = [move for move in world.archive.moves if world.movers[move] is client]
        #: C-STOREs that may have reached this answer: to its title, while it was its own.
        self.own = [
            sent
            for sent in world.archive.sent
            if any(
                lease.title == sent.called and lease.start <= sent.opened_at and sent.asked_at <= lease.end
                for lease in self.leases
            )
        ]

    def judge(self) -> None:
        client, result = self.client, self.client.result
        assert result is not None, "an answer that never ended"
        parts, closed = client.read()
        origins = [self._origin(part) for part in parts]
        whole = [sent for part, sent in zip(parts, origins, strict=True) if part.whole and sent is not None]
        uids = [sent.claim for sent in whole]
        assert len(set(uids)) == len(uids), "an instance twice in one answer"
        assert set(uids) <= self.wish.allowed, "an instance that must stay inside, or of elsewhere"
        assert client.finished == (result.error is None), "the end of the answer and its result differ"
        if not client.gone:
            assert closed == client.finished, "closed without being finished, or the other way round"
        if client.finished:
            self._complete(parts, set(uids))
        else:
            assert not closed
            assert result.cut == bool(client.content_type), "an answer that had begun must be cut"
            assert client.aborted == bool(client.content_type)
        if self._inexcusable:
            excused = isinstance(result.error, TooManyRequests) and not result.cut and self._scarce
            assert client.finished or excused, f"a good PACS, a patient client, and yet: {result.error!r}"

    def _origin(self, part: Part) -> Sent | None:
        """Find the C-STORE a part came from: every byte of it, and in its own right."""
        found = [sent for sent in self.own if _matches(part, sent)]
        # The first bytes of two copies may be the same.
        for sent in sorted(found, key=lambda sent: sent.claim != sent.step.instance.uid):
            assert sent.step.instance.series == self.held.uid, "an instance of another series"
            assert sent.step.instance.study == self.held.study, "an instance of another study"
            assert sent.claim == sent.step.instance.uid, "an instance under another's name"
            assert _named_right(sent, self.moves), "an instance of another Move Originator"
            assert sent.step.calling == "PACS", "an instance from a stranger"
            assert sent.whole or not part.whole, "a whole part of an instance that was not sent whole"
            return sent
        known = not part.whole and not part.data
        assert known, "bytes that the PACS did not send for this answer"
        return None

    def _complete(self, parts: list[Part], uids: set[str]) -> None:
        """Check an answer that says of itself that it is whole."""
        result = self.client.result
        assert result is not None
        assert all(part.whole for part in parts)
        assert self.moves, "complete without a C-MOVE"
        last = self.moves[-1]
        assert last.final_at is not None, "complete without a final response"
        assert last.status in (Status.SUCCESS, Status.WARNING), "complete after a move that failed"
        assert result.instances == len(parts)
        if self.wish.due is not None:
            assert uids >= self.wish.due, f"complete without {sorted(self.wish.due - uids)}"
        else:
            assert len(uids) == last.claimed, "complete against the PACS's count"
        taken = {
            sent.claim
            for sent in self.own
            if sent.status == Status.SUCCESS
            and sent.whole
            and sent.move is last
            and sent.answered_at <= last.final_at
        }
        assert taken & self.wish.allowed <= uids, "an instance taken and not delivered"

    @property
    def _scarce(self) -> bool:
        """True when there may be too few titles or associations for everybody."""
        conditions = self.world.history.conditions
        return min(conditions.titles, conditions.links) < len(self.world.clients)

    @property
    def _inexcusable(self) -> bool:
        """True when nothing excuses an answer that is not complete."""
        conditions, wish = self.world.history.conditions, self.wish
        plans = [move.plan for move in self.moves]
        if not wish.patient or not self.wish.servable or not all(plan.good for plan in plans):
            return False
        if wish.speed is not None and not conditions.roomy:
            return False
        if self.wish.due is None and any(
            plan.oddities or plan.lie or plan.final != "last" for plan in plans
        ):
            return False
        if not _as_it_is(wish) and conditions.codec != "works":
            return False
        if any(move.impatient for move in self.moves):
            # Excused, or complained of, elsewhere.
            return False
        if self.world.archive.rejected:
            return False
        # A copy from elsewhere may come half, or make a move that sent nothing look as if it had.
        strays = [sent for sent in self.own if sent.move not in self.moves]
        retried = any(plan.proposes_more for plan in plans)
        return not any(retried or sent.step.how not in WHOLE for sent in strays)


def _matches(part: Part, sent: Sent) -> bool:
    """True when a part holds the bytes of one C-STORE, and for a whole one all of them."""
    due = sent.step.instance.leaves(sent.number, sent.syntax, part.syntax)
    return part.data == due if part.whole else due.startswith(part.data)


def _statuses(world: World) -> None:
    """Nothing is taken from the PACS that nobody may have."""
    for sent in world.archive.sent:
        if sent.status != Status.SUCCESS:
            continue
        holders = [
            lease
            for lease in world.leases
            if lease.title == sent.called and lease.start <= sent.opened_at and sent.asked_at <= lease.end
        ]
        moves = [move for move in world.archive.moves if move.title == sent.called]
        assert holders, f"taken on {sent.called}, which nobody held"
        assert sent.step.calling == "PACS", "taken from a stranger"
        assert _named_right(sent, moves), "taken with a wrong Move Originator"
        belongs = any(lease.client.wish.held.uid == sent.step.instance.series for lease in holders)
        if not belongs and sent.claim == sent.step.instance.uid and not _own_name(sent, holders):
            # An instance in flight when its answer ends is answered so that the PACS goes on.
            ended = any(lease.end <= sent.answered_at or not lease.client.live for lease in holders)
            assert ended, "an instance of elsewhere was taken"


def _named_right(sent: Sent, moves: list[MoveServed]) -> bool:
    """True when a C-STORE names nobody, or us and one of these moves."""
    if sent.step.originator == "wrong title":
        return False
    return sent.named is None or sent.named in [move.number for move in moves]


def _own_name(sent: Sent, holders: list[Lease]) -> bool:
    """True for a forged data set under a UID that is due: dropped as a repetition when that one came."""
    return any(sent.claim in lease.client.wish.held.allowed for lease in holders)


def _titles(world: World) -> None:
    """A title is leased again only when nothing of the move before can arrive on it any more."""
    before: dict[str, MoveServed] = {}
    assert not world.crowded, f"leased with associations of an earlier move open: {world.crowded}"
    assert not world.lingering, f"quiet for long, and not back: {world.lingering[:3]}"
    for move in world.archive.moves:
        earlier = before.get(move.title)
        before[move.title] = move
        if earlier is None or earlier.final_at is not None:
            continue
        leases = [
            each for each in world.leases if each.title == move.title and each.start <= earlier.began_at
        ]
        waited = move.began_at - leases[-1].end
        assert waited >= world.pacs.quarantine - 0.01, f"{move.title} leased again after {waited:.1f} s"


def _nothing_left(world: World) -> None:
    pool = world.pools.by_pacs["P"]
    states = {title.state for title in pool.titles.values()}
    assert states == {TitleState.FREE}, "a title that never came back"
    assert pool.waiting == 0
    assert not any(title.channels for title in pool.titles.values())
    assert not world.net.open, f"{len(world.net.open)} ends of connections left open"
    assert not world.factory._open
    assert not world.net.getDelayedCalls()
    assert world.archive.busy == 0
    assert world.deliveries._means.budget.used == 0, "memory never given back"
    assert world.spool.used == 0, "spool never given back"
    for limit in world.links._limits.values():
        assert limit.tokens == limit.limit, "an association's place never given back"
    assert metrics.WINDOW_BYTES._value.get() == 0
    assert metrics.SPOOL_BYTES._value.get() == 0
    assert metrics.DELIVERIES_RUNNING._value.get() == 0
