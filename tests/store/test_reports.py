"""Which report speaks for a study: the same answer in whatever order the messages come."""

from __future__ import annotations

import itertools
from datetime import timedelta

import attrs
import pytest
import pytest_twisted
from sqlalchemy import select

from drimbox.model import MessageAction
from drimbox.ports import ReportSaid, Speaker, Voice
from drimbox.store.reports import Reports
from drimbox.store.schema import feed_job
from tests.store.conftest import Stores
from tests.store.samples import START

pytestmark = pytest.mark.requirement("DB.SO.97")
NEW, REPLACE, DELETE = MessageAction.NEW, MessageAction.REPLACE, MessageAction.DELETE
S1, S2 = "2.25.1", "2.25.2"


def said(
    document: str,
    *studies: str,
    action: MessageAction = NEW,
    replaces: str | None = None,
    minute: float | None = 0,
) -> ReportSaid:
    sent = START + timedelta(minutes=minute - 60) if minute is not None else None
    return ReportSaid(document, replaces, action, sent, studies or (S1,))


async def read(stores: Stores, what: ReportSaid, ris: str = "ris-a") -> int:
    number = await stores.inbox.add(ris=ris, peer="p", control_id="c", raw=repr(what).encode())
    await stores.inbox.take(stores.clock.now(), 100)
    await stores.inbox.processed(number, result="feed", said=what)
    return number


async def jobs(stores: Stores, message: int) -> list[str]:
    query = select(feed_job.c.study_uid).where(feed_job.c.message_id == message).order_by(feed_job.c.id)
    return list(await stores.database.read(lambda connection: connection.execute(query).scalars().all()))


async def speaker(stores: Stores, study: str = S1) -> Speaker | Voice:
    return await Reports(stores.database).speaker(study)


@pytest_twisted.ensureDeferred
async def test_of_those_that_speak_the_last_to_come_does(stores: Stores) -> None:
    assert await speaker(stores) is Voice.UNKNOWN
    first = await read(stores, said("A"), "ris-a")
    assert await speaker(stores) == Speaker(first, "ris-a")
    second = await read(stores, said("B", S1, S2), "ris-b")
    assert await speaker(stores) == await speaker(stores, S2) == Speaker(second, "ris-b")


@pytest_twisted.ensureDeferred
async def test_a_withdrawn_report_leaves_the_word_to_another_or_to_nobody(stores: Stores) -> None:
    first = await read(stores, said("A", S1, S2))
    await read(stores, said("B", S1, minute=1))
    gone = await read(stores, said("B", S1, action=DELETE, minute=2))
    assert await jobs(stores, gone) == [S1]
    assert await speaker(stores) == Speaker(first, "ris-a")
    await read(stores, said("A", S1, action=DELETE, minute=3))
    assert await speaker(stores) is await speaker(stores, S2) is Voice.NONE_LEFT


@pytest_twisted.ensureDeferred
async def test_a_withdrawal_is_about_every_study_of_its_document(stores: Stores) -> None:
    await read(stores, said("A", S1, S2))
    gone = await read(stores, said("A", S1, action=DELETE, minute=1))
    assert await jobs(stores, gone) == [S1, S2]


@pytest_twisted.ensureDeferred
async def test_a_replacement_with_fewer_studies_is_about_the_dropped_ones_too(stores: Stores) -> None:
    await read(stores, said("A", S1, S2))
    new = await read(stores, said("B", S1, action=REPLACE, replaces="A", minute=1))
    assert await jobs(stores, new) == [S1, S2]
    assert await speaker(stores) == Speaker(new, "ris-a")
    assert await speaker(stores, S2) is Voice.NONE_LEFT


@pytest_twisted.ensureDeferred
async def test_a_report_published_again_after_its_withdrawal_speaks_again(stores: Stores) -> None:
    await read(stores, said("A"))
    await read(stores, said("A", action=DELETE, minute=1))
    again = await read(stores, said("A", minute=2))
    assert await speaker(stores) == Speaker(again, "ris-a")


@pytest_twisted.ensureDeferred
async def test_without_an_instant_the_order_of_arrival_decides(stores: Stores) -> None:
    await read(stores, said("A", minute=None))
    await read(stores, said("A", action=DELETE, minute=None))
    assert await speaker(stores) is Voice.NONE_LEFT
    stores.clock.advance(60)
    again = await read(stores, said("A", minute=None))
    assert await speaker(stores) == Speaker(again, "ris-a")


@pytest_twisted.ensureDeferred
async def test_a_sender_s_clock_cannot_keep_a_withdrawal_from_counting(stores: Stores) -> None:
    await read(stores, said("A", minute=10))
    # Set back by an hour in between.
    await read(stores, said("A", action=DELETE, minute=-50))
    assert await speaker(stores) is Voice.NONE_LEFT


@pytest_twisted.ensureDeferred
async def test_nothing_is_sent_after_it_came(stores: Stores) -> None:
    await read(stores, said("A", minute=60 * 24 * 365))
    stores.clock.advance(3600)
    newer = await read(stores, said("A", minute=110))
    assert await speaker(stores) == Speaker(newer, "ris-a")


@pytest_twisted.ensureDeferred
async def test_an_old_copy_that_comes_again_does_not_undo_what_came_since(stores: Stores) -> None:
    await read(stores, said("A"))
    changed = await read(stores, said("A", minute=5))
    await read(stores, said("A"))
    assert await speaker(stores) == Speaker(changed, "ris-a")


@pytest_twisted.ensureDeferred
async def test_two_that_replace_each_other_leave_the_later_one(stores: Stores) -> None:
    await read(stores, said("A", minute=0, action=REPLACE, replaces="B"))
    later = await read(stores, said("B", minute=1, action=REPLACE, replaces="A"))
    assert await speaker(stores) == Speaker(later, "ris-a")


#: A life of one study, in the order it was sent, and the document that speaks in the end.
LIVES = [
    ([said("A"), said("B", action=REPLACE, replaces="A", minute=1)], "B"),
    ([said("A"), said("A", action=DELETE, minute=1)], None),
    (
        [
            said("A"),
            said("B", action=REPLACE, replaces="A", minute=1),
            said("C", action=REPLACE, replaces="B", minute=2),
        ],
        "C",
    ),
    (
        [
            said("A"),
            said("B", action=REPLACE, replaces="A", minute=1),
            said("B", action=DELETE, minute=2),
        ],
        None,
    ),
]


@pytest.mark.parametrize("number", range(len(LIVES)))
@pytest_twisted.ensureDeferred
async def test_any_order_of_arrival_ends_alike(stores: Stores, number: int) -> None:
    life, expected = LIVES[number]
    for turn, order in enumerate(itertools.permutations(life)):
        numbers: dict[int, str] = {}
        for one in order:
            # Each order with documents and a study of its own.
            own = attrs.evolve(
                one,
                document_id=f"{one.document_id}{turn}",
                replaces=f"{one.replaces}{turn}" if one.replaces else None,
                studies=(f"2.25.7.{number}.{turn + 1}",),
            )
            numbers[await read(stores, own)] = one.document_id
        found = await speaker(stores, f"2.25.7.{number}.{turn + 1}")
        if expected is None:
            assert found is Voice.NONE_LEFT, order
        else:
            assert isinstance(found, Speaker), order
            assert numbers[found.message_id] == expected, order


@pytest_twisted.ensureDeferred
async def test_repetition_changes_nothing(stores: Stores) -> None:
    """Each message twice in a row says what each once says."""
    steps = [(document, action) for document in "AB" for action in (NEW, DELETE)]

    async def play(life: tuple[tuple[str, MessageAction], ...], study: str, times: int) -> str | None:
        numbers: dict[int, str] = {}
        for minute, (document, action) in enumerate(life):
            for _ in range(times):
                own = said(document + study, study, action=action, minute=minute)
                numbers[await read(stores, own)] = document
        found = await speaker(stores, study)
        return numbers[found.message_id] if isinstance(found, Speaker) else None

    for number, life in enumerate(itertools.product(steps, repeat=3)):
        once = await play(life, f"2.25.8.{number}.1", 1)
        assert once == await play(life, f"2.25.8.{number}.2", 2), life


@pytest_twisted.ensureDeferred
async def test_a_withdrawal_that_comes_last_counts_even_if_it_was_sent_before(stores: Stores) -> None:
    """In doubt nothing is shown: the report can be sent once more, what was seen cannot be unseen."""
    await read(stores, said("A", minute=2))
    await read(stores, said("A", action=DELETE, minute=1))
    assert await speaker(stores) is Voice.NONE_LEFT


@pytest_twisted.ensureDeferred
async def test_a_message_sent_again_while_our_clock_is_behind_counts(stores: Stores) -> None:
    await read(stores, said("A", minute=0))
    stores.clock.instant -= timedelta(days=1)
    again = await read(stores, said("A", minute=10), "ris-b")
    assert await speaker(stores) == Speaker(again, "ris-b")
    older = await read(stores, said("A", minute=-10))
    assert await speaker(stores) == Speaker(again, "ris-b"), older


@pytest.mark.requirement("DB.SO.12")
@pytest_twisted.ensureDeferred
async def test_the_same_message_again_names_its_studies_and_says_nothing_new(stores: Stores) -> None:
    await read(stores, said("A", S1, S2))
    second = await read(stores, said("B", S1, minute=1))
    again = await read(stores, said("A", S1, S2))
    assert await jobs(stores, again) == [S1, S2]
    assert await speaker(stores) == Speaker(second, "ris-a")
    # Sent once more on purpose, it is another message.
    anew = await read(stores, said("A", S1, S2, minute=2))
    assert await speaker(stores) == Speaker(anew, "ris-a")
