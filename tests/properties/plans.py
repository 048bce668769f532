"""How the PACS of a random history serves one C-MOVE: well, or in any of the ways it can go wrong.

A plan knows nothing of the series it will be applied to: positions count from the start of the row of
C-STOREs, over and over. `Plan.good` says that a gateway has no excuse: with a patient client the answer
is due whole. Hypothesis draws plans and shrinks them towards a PACS that does nothing odd.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import strategies as st

from tests.properties.holdings import SERIES, Held, Instance, forged

#: Oddities after which every instance has still been sent in order once, before the final response.
HARMLESS = (
    "again",  # an instance twice
    "foreign",  # a genuine instance of another series, with its own UIDs
    "wrong title",  # a copy with a Move Originator AE title that is not ours
    "wrong number",  # a copy with the message id of no move
    "other move",  # a copy of something else, with the message id of another running move
    "astray",  # a copy on an association to another title
    "stranger",  # a copy on an association from an unknown calling AE title
    "slow",  # a pause inside the data set
    "drip",  # many of them, in all longer than any silence is borne
    "pause",  # a pause before it
    "reopen",  # the association is released and another one opened
    "unnamed",  # without Move Originator
    "echo",  # a C-ECHO between two images
)
#: Oddities after which something may be missing.
HARMFUL = (
    "skip",  # not sent, said to be
    "fail",  # not sent, said to have failed
    "forged",  # a data set of elsewhere under the UID of an instance that is due
    "misnamed",  # the right data set under the UID of another
    "only wrong",  # the instance itself names another Move Originator
    "only astray",  # the instance itself goes to another title
    "tear",  # the connection is closed inside the data set; the lane goes on
    "abort",  # the association is aborted inside the data set
    "torn again",  # closed inside the data set, then sent again from the start
    "stop",  # the lane ends here
    "hang",  # silence inside the data set, longer than any patience
    "drop move",  # the association of the C-MOVE is closed
    "garbage",  # something that is no PDU
)
#: Ways to send an instance at the end of which it has been sent.
WHOLE = ("whole", "slow", "drip")


@attrs.frozen
class Oddity:
    """Something that happens at one C-STORE."""

    kind: str
    at: int = 0
    more: int = 0


@attrs.frozen
class Plan:
    """How one C-MOVE is served; the defaults are those of a good PACS."""

    #: 0 in the order held, else a permutation.
    order: int = 0
    lanes: int = 1
    #: The lanes work one after the other, or at the same time.
    parallel: bool = True
    #: Largest PDU it writes, bytes; seconds between two images.
    pdu: int = 16384
    gap: float = 0.0
    pending: bool = True
    oddities: tuple[Oddity, ...] = ()
    #: Instead of serving.
    request: str = "serve"
    #: The final response: when, with which status (None: the truth), with how many too many completed.
    final: str = "last"
    status: int | None = None
    lie: int = 0
    #: Seconds a lane keeps its association after its last image.
    linger: float = 0.0
    #: Deaf to C-CANCEL; goes on when the association of the C-MOVE has ended.
    deaf: bool = False
    orphan: bool = False
    #: Ends everything at the first refused instance, as stock Orthanc does.
    abandons: bool = False
    #: Proposes a syntax that it cannot convert to, in the same context.
    proposes_more: bool = False
    #: Sends the whole series when one instance of it is asked for.
    coarse: bool = False

    @property
    def good(self) -> bool:
        """True when nothing that it does excuses an incomplete answer."""
        kinds = {oddity.kind for oddity in self.oddities}
        refused = kinds & {"foreign", "wrong title", "wrong number", "other move"}
        return (
            self.request == "serve"
            and kinds <= set(HARMLESS)
            and not (self.abandons and refused)
            and self.status is None
            and (self.final == "last" or (self.final == "early" and not self._gaps and not refused))
        )

    @property
    def _gaps(self) -> bool:
        """True when nothing may be open, or nothing come for a while, after an early final response."""
        kinds = {oddity.kind for oddity in self.oddities}
        return bool(kinds & {"reopen", "pause"}) or (self.lanes > 1 and not self.parallel)


@attrs.frozen
class Step:
    """One C-STORE of a lane."""

    instance: Instance
    #: Command's SOP Instance UID when it is not the data set's.
    claim: str = ""
    originator: str = "right"
    #: How it goes: one of `WHOLE`, hang, tear, abort, garbage, skip, fail.
    how: str = "whole"
    #: Index of the pool's title called, None for the move's own; -1 for one that does not exist.
    to: int | None = None
    calling: str = "PACS"
    pause: float = 0.0
    reopen: bool = False
    echo: bool = False
    stop: bool = False
    drop_move: bool = False


def steps(plan: Plan, held: Held) -> list[list[Step]]:
    """Lay a plan out over a series: the C-STOREs of each lane."""
    instances = list(held.instances)
    if plan.order:
        random.Random(plan.order).shuffle(instances)
    row = [[Step(instance)] for instance in instances]
    for oddity in plan.oddities:
        _apply(row[oddity.at % len(row)], oddity, held)
    lanes = [row[lane :: plan.lanes] for lane in range(plan.lanes)]
    return [[step for place in lane for step in place] for lane in lanes if lane]


def _apply(place: list[Step], oddity: Oddity, held: Held) -> None:
    """Change what happens at one place of the row; its last step is the instance itself."""
    usual, more = place[-1], oddity.more
    copy = Step(usual.instance)
    others = [each for each in SERIES if each.uid != held.uid]
    # In the same syntax: with one more proposed, the gateway would not take both.
    elsewhere = attrs.evolve(others[more % len(others)].instances[0], syntax=usual.instance.syntax)
    before = {
        "again": [copy],
        "foreign": [Step(elsewhere, originator="absent" if more % 3 else "right")],
        "wrong title": [attrs.evolve(copy, originator="wrong title")],
        "wrong number": [attrs.evolve(copy, originator="wrong number")],
        "other move": [Step(elsewhere, originator="other move")],
        "astray": [attrs.evolve(copy, to=more % 5 - 1, originator="absent" if more % 2 else "right")],
        "stranger": [attrs.evolve(copy, calling="STRANGER", to=None)],
        "forged": [Step(forged(usual.instance, more), originator="absent" if more % 3 else "right")],
        "misnamed": [attrs.evolve(copy, claim=held.instances[more % len(held.instances)].uid)],
        "torn again": [attrs.evolve(copy, how="tear")],
    }
    instead: dict[str, dict[str, Any]] = {
        "slow": {"how": "slow"},
        "drip": {"how": "drip"},
        "pause": {"pause": 1.0 + more % 3},
        "reopen": {"reopen": True},
        "unnamed": {"originator": "absent"},
        "echo": {"echo": True},
        "skip": {"how": "skip"},
        "fail": {"how": "fail"},
        "only wrong": {"originator": "wrong number"},
        "only astray": {"to": more % 5 - 1, "originator": "absent" if more % 2 else "right"},
        "tear": {"how": "tear"},
        "abort": {"how": "abort"},
        "hang": {"how": "hang"},
        "garbage": {"how": "garbage"},
        "stop": {"stop": True},
        "drop move": {"drop_move": True},
    }
    if oddity.kind in before:
        place[-1:-1] = before[oddity.kind]
    else:
        place[-1] = attrs.evolve(usual, **instead[oddity.kind])


def _oddities(kinds: Sequence[str], most: int) -> st.SearchStrategy[tuple[Oddity, ...]]:
    one = st.builds(Oddity, st.sampled_from(kinds), st.integers(0, 5), st.integers(0, 9))
    return st.lists(one, max_size=most).map(tuple)


_MANNERS = {
    "order": st.integers(0, 50),
    "lanes": st.integers(1, 3),
    "parallel": st.booleans(),
    "pdu": st.sampled_from((16384, 700, 64)),
    "gap": st.sampled_from((0.0, 0.1, 0.7)),
    "pending": st.booleans(),
    "linger": st.sampled_from((0.0, 0.0, 1.0, 30.0)),
    "deaf": st.booleans(),
    "orphan": st.booleans(),
    "lie": st.sampled_from((0, 0, 1, -1)),
    "proposes_more": st.booleans(),
    "coarse": st.booleans(),
}

GOOD = st.builds(
    Plan,
    **_MANNERS,
    oddities=_oddities(HARMLESS, 3),
    final=st.sampled_from(("last", "last", "early")),
).filter(lambda plan: plan.good)

#: The same, and nothing that could disturb another move.
TIDY = GOOD.filter(lambda plan: all(oddity.kind != "astray" for oddity in plan.oddities))

ANY = st.builds(
    Plan,
    **_MANNERS,
    oddities=_oddities(HARMLESS + HARMFUL, 4),
    request=st.sampled_from(("serve",) * 8 + ("reject", "silent", "close", "refuse")),
    final=st.sampled_from(("last", "last", "early", "first", "never")),
    status=st.sampled_from((None, None, None, 0x0000, 0xB000, 0xA702, 0xFE00)),
    abandons=st.booleans(),
)
