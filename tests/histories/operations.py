"""What can happen to the feed: the operations of a random history, and how hypothesis draws them.

Small numbers name things: studies, documents, the two PACS, the two structures. There are few of each, so
that operations meet: a document is sent again, replaced before it came, withdrawn twice. A history of
another number (`numbered`) has studies and documents of its own.
"""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st

#: How many of each there are.
STUDIES, DOCUMENTS, PACSES, STRUCTURES = 3, 4, 2, 2
#: Titles of rejection notes (interfaces.md 10), and of a note of interest.
REJECTIONS, OF_INTEREST = ("113001", "113037", "113038", "113039"), "113000"
#: Flags of interfaces.md 1.4 by the letter that stands for them here.
FLAGS = {"P": "MASQUE_PS", "I": "INVISIBLE_PATIENT", "L": "INVISIBLE_REP_LEGAUX"}


@attrs.frozen
class Report:
    """A report comes: new, said again, or in place of another (`replaces`).

    `lag` tells how many messages sent after it came before it (MSH-7 says when it was sent).
    """

    document: int
    studies: tuple[int, ...]
    replaces: int | None = None
    #: Letters of `FLAGS`.
    hidden: str = ""
    accessions: tuple[str, ...] = ("A",)
    structure: int = 0
    patient: int = 0
    lag: int = 0
    kind: str = "ORU"
    only_visibility: bool = False
    #: What keeps it from feeding: "" nothing, "destdmp", "ins", "incomplete".
    flaw: str = ""


@attrs.frozen
class Withdraw:
    """A report is unpublished."""

    document: int
    studies: tuple[int, ...]
    lag: int = 0
    kind: str = "ORU"


@attrs.frozen
class Again:
    """The same message once more, to the byte; `back` counts from the last one."""

    back: int = 0


@attrs.frozen
class Change:
    """A PACS announces a change by OMI^O23, true or not."""

    studies: tuple[int, ...]


@attrs.frozen
class Note:
    """A PACS announces a change by a key object, true or not."""

    study: int
    title: str = "113001"
    pacs: int = 0


@attrs.frozen
class Images:
    """Images come or go; `told` is how the PACS announces it: "", "omi" or the title of a note."""

    study: int
    pacs: int = 0
    add: int = 0
    #: Images that go; 99 is all there is.
    remove: int = 0
    #: Those that come are an algorithm's, under a root that stays inside (DB.SO.199).
    inside: bool = False
    told: str = ""


@attrs.frozen
class Move:
    """A study goes to the other PACS."""

    study: int
    told: str = ""


@attrs.frozen
class KeyImage:
    """A radiologist marks images; the PACS keeps the note (DB.SO.194)."""

    study: int
    pacs: int = 0
    told: str = ""


@attrs.frozen
class PacsIs:
    """From now on a PACS is "up", "silent", "refusing", or "immobile": it lists but sends nothing."""

    pacs: int
    state: str


@attrs.frozen
class DmpIs:
    """From now on the DMP is "up", "down" (refuses connections) or "busy" (503 to everything)."""

    state: str


@attrs.frozen
class DmpNext:
    """How the DMP treats the next requests of a kind.

    "lost": thrown away, no answer. "unanswered": carried out, no answer. "late": carried out long after
    the gateway has given up. "twice": carried out twice, the second answer arrives. "refuse": no.
    """

    treatment: str
    transaction: str = "TD2.1"
    times: int = 1


@attrs.frozen
class Kill:
    """`kill -9` in so many seconds, or when the gateway has committed so many more transactions."""

    seconds: float = 0.0
    #: 0 is at its time, whatever was committed.
    commits: int = 0


@attrs.frozen
class Wait:
    """Time passes."""

    seconds: float


@attrs.frozen
class Calm:
    """Everything is up again, and is given the time it needs; then the record is judged."""


def studies_of(number: int) -> range:
    """Return the studies of the histories of a number."""
    return range(number * STUDIES, (number + 1) * STUDIES)


def numbered(history: tuple[Any, ...], number: int) -> tuple[Any, ...]:
    """Return the same history of the studies and documents of a number."""

    def other(operation: Any) -> Any:
        changed: dict[str, Any] = {}
        for name in ("document", "replaces"):
            if getattr(operation, name, None) is not None:
                changed[name] = getattr(operation, name) + number * DOCUMENTS
        if hasattr(operation, "study"):
            changed["study"] = operation.study + number * STUDIES
        if hasattr(operation, "studies"):
            changed["studies"] = tuple(study + number * STUDIES for study in operation.studies)
        return attrs.evolve(operation, **changed)

    return tuple(other(each) for each in history)


_study = st.integers(0, STUDIES - 1)
_studies = st.lists(_study, min_size=1, max_size=STUDIES, unique=True).map(tuple)
_document = st.integers(0, DOCUMENTS - 1)
_pacs = st.integers(0, PACSES - 1)
_lag = st.sampled_from((0, 0, 0, 1, 2))
_kind = st.sampled_from(("ORU", "MDM"))
_hidden = st.sampled_from(("", "", "P", "I", "PIL"))
_told = st.sampled_from(("omi", "omi", "", *REJECTIONS))
_seconds = st.sampled_from((0.0, 0.05, 0.3, 2.0, 15.0))


def _ordered(report: Report) -> Report:
    """No document replaces a later one."""
    if report.replaces is None or report.replaces >= report.document:
        return attrs.evolve(report, replaces=None)
    return report


def _reports(flaws: tuple[str, ...]) -> st.SearchStrategy[Report]:
    return st.builds(
        Report,
        document=_document,
        studies=_studies,
        replaces=st.none() | _document,
        hidden=_hidden,
        accessions=st.sampled_from((("A",), ("A",), ("B",), ("A", "B"))),
        structure=st.sampled_from((0, 0, 0, 1)),
        patient=st.sampled_from((0,) * 9 + (1,)),
        lag=_lag,
        kind=_kind,
        only_visibility=st.booleans(),
        flaw=st.sampled_from(flaws),
    ).map(_ordered)


_report = _reports(("",))
_withdraw = st.builds(Withdraw, _document, _studies, _lag, _kind)
_add = st.builds(Images, _study, _pacs, add=st.integers(1, 2), inside=st.booleans(), told=_told)
_remove = st.builds(Images, _study, _pacs, remove=st.sampled_from((1, 2, 99)), told=_told)
_move = st.builds(Move, _study, _told)
_key = st.builds(KeyImage, _study, _pacs, st.sampled_from(("omi", "", OF_INTEREST)))
_change = st.builds(Change, _studies)
_pacs_is = st.builds(PacsIs, _pacs, st.sampled_from(("up", "silent", "refusing", "immobile")))
_dmp_is = st.builds(DmpIs, st.sampled_from(("up", "down", "busy")))
_dmp_next = st.builds(
    DmpNext,
    st.sampled_from(("lost", "unanswered", "late", "twice", "refuse")),
    st.sampled_from(("TD2.1", "TD2.1", "TD2.1", "TD3.3c", "TD3.1", "TD0.2")),
    st.integers(1, 3),
)
_kill = st.builds(Kill, seconds=_seconds) | st.builds(Kill, commits=st.integers(1, 20))
_wait = st.builds(Wait, _seconds)
_anything = st.one_of(_report, _withdraw, _add, _remove, _move, _key, _change)


def _scene(*parts: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*parts)


#: What the RIS says, in whatever order it comes.
SPOKEN: st.SearchStrategy[Any] = st.one_of(
    _scene(_reports(("", "", "", "", "destdmp", "ins", "incomplete"))),
    _scene(_report),
    _scene(_withdraw),
    _scene(st.builds(Again, st.integers(0, 4))),
    # A replacement or a withdrawal before what it takes back.
    st.builds(
        lambda late, early, replaces: (
            (attrs.evolve(late, document=early.document + 1, replaces=early.document), early)
            if replaces
            else (Withdraw(early.document, early.studies), early)
        ),
        _report,
        _report.map(lambda each: attrs.evolve(each, lag=1, document=each.document % 3, replaces=None)),
        st.booleans(),
    ),
    _scene(_wait),
    _scene(st.just(Calm())),
)
#: What the RIS says, and what the PACS hold and tell.
EVERYDAY: st.SearchStrategy[Any] = st.one_of(
    SPOKEN,
    _scene(_change),
    _scene(st.builds(Note, _study, st.sampled_from((*REJECTIONS, OF_INTEREST)), _pacs)),
    _scene(_add),
    _scene(_remove),
    _scene(_move),
    _scene(_key),
    _scene(_wait),
)
#: Anything: the same, and what goes wrong.
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    EVERYDAY,
    # What goes wrong is of no use unless something happens meanwhile.
    _scene(_pacs_is, _anything, _wait),
    _scene(_dmp_is, _anything, _wait),
    _scene(_dmp_next, _anything, _wait),
    _scene(_anything, _kill),
    _scene(_anything, _wait, _kill),
    st.builds(
        lambda key, told: (PacsIs(key.pacs, "immobile"), attrs.evolve(key, told=told), Wait(15.0)),
        _key,
        st.sampled_from(("omi", OF_INTEREST)),
    ),
)

#: A hospital where three studies were published, and one where nothing was.
_beginnings = st.sampled_from(
    ((Report(0, (0, 1)), Report(1, (2,)), Calm()), (Report(0, (0, 1)), Report(1, (2,))), ())
)


def histories(scene: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Draw histories of a dozen operations or two; two lists, because one would be shorter."""
    part = st.lists(scene, max_size=8)
    return st.builds(
        lambda begun, *parts: begun + tuple(one for each in parts for scene in each for one in scene),
        _beginnings,
        part,
        part,
    )
