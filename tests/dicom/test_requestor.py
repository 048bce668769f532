"""Asking a PACS: every wrong answer is one coded error, in time, and leaves nothing open."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import pytest_twisted
from pydicom.dataset import Dataset
from twisted.internet.defer import gatherResults
from twisted.internet.task import Clock

from drimbox.dicom.association import UpperLayer
from drimbox.dicom.dimse import Command, CommandField
from drimbox.dicom.identifiers import encode_dataset
from drimbox.dicom.negotiation import AssociationRequest, ProposedContext
from drimbox.dicom.pdu import RELEASE_RQ
from drimbox.dicom.requestor import (
    MAX_IDENTIFIER,
    STUDY_ROOT_FIND,
    STUDY_ROOT_MOVE,
    VERIFICATION,
    PacsBusy,
    Requestor,
    echo,
)
from drimbox.errors import PacsCommunicationError
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.peers import Dcmqrscp, Orthanc, free_port
from tests.dicom.box import (
    EXPLICIT,
    IMPLICIT,
    PACS,
    SETTINGS,
    Box,
    Wire,
    apart,
    in_thread,
    lose,
    pause,
    reactor,
    until,
)
from tests.dicom.scripted import Answering, ScriptedPacs


def match(**values: object) -> Dataset:
    data = Dataset()
    data.QueryRetrieveLevel = "STUDY"
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


def silence(association: Answering, command: Command, data: Dataset | None) -> None:
    """Answer nothing."""


# -- C-ECHO -------------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.05", "DB.SO.140")
@pytest.mark.peer("dcmqrscp")
@pytest_twisted.ensureDeferred
async def test_echo_with_dcmtk(here: Any) -> None:
    with Dcmqrscp(here, "ARCHIVE") as peer:
        pacs = attrs.evolve(PACS, ae_title="ARCHIVE", port=peer.port)
        assert 0 <= await echo(pacs, SETTINGS, reactor) < SETTINGS.connect_timeout
        with pytest.raises(PacsCommunicationError, match="rejetée"):
            await echo(attrs.evolve(pacs, ae_title="NOBODY"), SETTINGS, reactor)


@pytest.mark.peer("Orthanc")
@pytest_twisted.ensureDeferred
async def test_echo_with_orthanc(here: Any) -> None:
    with Orthanc(here, "ORTHANC", clients=["DRIMBOX"]) as peer:
        pacs = attrs.evolve(PACS, ae_title="ORTHANC", port=peer.port)
        assert 0 <= await echo(pacs, SETTINGS, reactor) < SETTINGS.connect_timeout


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(echo_status=0x0122), "état 0x0122"),
        (Behaviour(connection="silent"), "pas de réponse à la demande"),
        (Behaviour(connection="close"), "fermée|coupée"),
        (Behaviour(connection="garbage"), r"pas celle d'un PACS DICOM \(PDU type 153"),
        (Behaviour(reject=(1, 1, 3)), r"rejetée.*appelant \(résultat 1, source 1, motif 3"),
        (Behaviour(reject=(1, 1, 7)), r"rejetée.*appelé \(résultat 1, source 1, motif 7"),
        (Behaviour(reject=(1, 2, 2)), "rejetée par le PACS : résultat 1, source 2, motif 2"),
        (Behaviour(reject=(2, 3, 2)), r"rejetée.*limite.*\(résultat 2, source 3, motif 2"),
        (Behaviour(down=True), "injoignable"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_echo_that_fails_says_why(box: Box, behaviour: Behaviour, words: str) -> None:
    with SimulatedPacs("PACS") as simulated:
        pacs = box.attach(simulated.port)
        simulated.behaviour = behaviour
        start = reactor.seconds()
        with pytest.raises(PacsCommunicationError, match=words):
            await echo(pacs, box.settings, reactor)
        assert reactor.seconds() - start < 10
        simulated.behaviour = Behaviour()
        assert await echo(pacs, box.settings, reactor) < box.settings.connect_timeout


@pytest_twisted.ensureDeferred
async def test_a_pacs_that_cannot_be_reached_fails_within_the_time_out() -> None:
    with pytest.raises(PacsCommunicationError, match="injoignable : connexion refusée"):
        await echo(attrs.evolve(PACS, port=free_port()), SETTINGS, reactor)
    with pytest.raises(PacsCommunicationError, match="injoignable : nom introuvable"):
        await echo(attrs.evolve(PACS, host="no-such-host.invalid"), SETTINGS, reactor)


# -- one operation ------------------------------------------------------------------------------------


async def asked(box: Box, pacs: ScriptedPacs, **changes: Any) -> Requestor:
    """An association with the scripted PACS on which a C-FIND runs."""
    box.attach(pacs.port, **changes)
    requestor = await box.links.open(box.pacs, [STUDY_ROOT_FIND, STUDY_ROOT_MOVE])
    requestor.begin(STUDY_ROOT_FIND, Command(CommandField.C_FIND_RQ, priority=0), match())
    return requestor


@pytest.mark.requirement("DB.SO.14")
@pytest_twisted.ensureDeferred
async def test_answers_in_pieces_are_whole(box: Box) -> None:
    """As many PDUs as bytes: the peer takes and sends the smallest ones there are."""

    def script(association: Answering, command: Command, data: Dataset | None) -> None:
        association.layer._peer_max_length = 12
        association.answer(0xFF00, match(StudyDescription="D" * 3000))
        association.answer(0x0000)

    async with ScriptedPacs(script) as pacs:
        pacs.max_pdu = 64
        requestor = await asked(box, pacs)
        response = await requestor.response(1)
        assert response.dataset is not None
        assert response.dataset.get("StudyDescription") == "D" * 3000
        assert (await requestor.response(1)).final
        await box.links.done(requestor)
        assert pacs.ends == ["release"]


@pytest.mark.parametrize("late", [False, True])
@pytest_twisted.ensureDeferred
async def test_who_waits_for_the_final_response_is_woken_once(box: Box, late: bool) -> None:
    def script(association: Answering, command: Command, data: Dataset | None) -> None:
        for number in range(3):
            association.answer(0xFF00, match(StudyDescription=str(number)))
        association.answer(0x0000)

    async with ScriptedPacs(script) as pacs:
        requestor = await asked(box, pacs)
        if late:  # what came before anybody waited is dropped too
            await until(lambda: len(requestor._ready) == 4)
        response = await requestor.final(1)
        assert (response.final, response.command.status) == (True, 0x0000)
        assert not requestor._ready
        # The next operation has all its responses again.
        requestor.begin(STUDY_ROOT_FIND, Command(CommandField.C_FIND_RQ, priority=0), match())
        statuses = [(await requestor.response(1)).command.status for _ in range(4)]
        assert statuses == [0xFF00, 0xFF00, 0xFF00, 0x0000]
        await box.links.done(requestor)


WRONG: dict[str, tuple[Any, str]] = {
    "another message id": (lambda a: a.answer(0xFF00, match(), responded_id=9), "autre demande"),
    "no message id": (lambda a: a.answer(0xFF00, match(), responded_id=None), "autre demande"),
    "another service": (lambda a: a.answer(0, field=CommandField.C_ECHO_RSP), "autre demande"),
    "a request of its own": (lambda a: a.answer(0, field=CommandField.C_STORE_RQ), "autre demande"),
    "no status": (lambda a: a.answer(None), "autre demande"),
    "identifier of garbage": (lambda a: a.answer(0xFF00, b"\x08\0\x05\0CS\xff\xffX"), "illisible"),
    "identifier too long": (lambda a: a.answer(0xFF00, b"x" * (MAX_IDENTIFIER + 1)), "trop longue"),
    "release": (lambda a: (a.layer.release(), a.flush()), "terminée par le PACS"),
    "abort": (lambda a: a.abort(), "interrompue par le PACS"),
    "cut": (lambda a: a.cut(), "coupée|fermée"),
    "garbage": (lambda a: a.raw(b"\x99\0\xff\xff\xff\xff"), "PDU type 153"),
    "a data set too many": (lambda a: a.raw(b"\4\0\0\0\0\x08\0\0\0\4\1\2xx"), "data set"),
    "silence": (lambda a: None, "pas de réponse du PACS en 1 s"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest_twisted.ensureDeferred
async def test_a_wrong_answer_ends_the_association_with_one_coded_error(box: Box, name: str) -> None:
    act, words = WRONG[name]
    async with ScriptedPacs(lambda association, command, data: act(association)) as pacs:
        requestor = await asked(box, pacs)
        with pytest.raises(PacsCommunicationError, match=words):
            await requestor.response(1)
        # Whoever goes on with it hears the same, at once; and never of a bug of ours.
        with pytest.raises(PacsCommunicationError, match=words):
            requestor.begin(STUDY_ROOT_FIND, Command(CommandField.C_FIND_RQ))
        with pytest.raises(PacsCommunicationError, match=words):
            await requestor.response(1)
        requestor.cancel(STUDY_ROOT_FIND, 1)
        await box.links.done(requestor)
        assert requestor.lost
        await until(lambda: pacs.open == 0)


@pytest_twisted.ensureDeferred
async def test_an_answer_cut_in_its_middle_is_not_an_answer(box: Box) -> None:
    def script(association: Answering, command: Command, data: Dataset | None) -> None:
        association.layer.send(
            association.context,
            Command(CommandField.C_FIND_RSP, responded_id=command.message_id, status=0xFF00),
            encode_dataset(match(StudyDescription="D" * 20000), EXPLICIT),
        )
        out = b"".join(association.layer.take_outgoing())
        association.raw(out[: len(out) // 2])
        reactor.callLater(0.05, association.transport.loseConnection)  # type: ignore[union-attr]

    async with ScriptedPacs(script) as pacs:
        requestor = await asked(box, pacs)
        with pytest.raises(PacsCommunicationError, match="coupée"):
            await requestor.response(1)
        await box.links.done(requestor)


@pytest.mark.threat("memory leaks by repeated requests")
@pytest_twisted.ensureDeferred
async def test_answers_after_the_last_one_are_refused(box: Box) -> None:
    def script(association: Answering, command: Command, data: Dataset | None) -> None:
        association.answer(0x0000)
        for _ in range(100):
            association.answer(0xFF00, match())

    async with ScriptedPacs(script) as pacs:
        requestor = await asked(box, pacs)
        assert (await requestor.response(1)).final
        await until(lambda: requestor.lost)
        assert len(requestor._ready) == 0
        await box.links.done(requestor)


@pytest_twisted.ensureDeferred
async def test_a_cancel_reaches_the_pacs(box: Box) -> None:
    def script(association: Answering, command: Command, data: Dataset | None) -> None:
        if command.field == CommandField.C_FIND_RQ:
            association.answer(0xFF00, match())
            association.pacs.number = command.message_id  # type: ignore[attr-defined]
        else:
            assert command.field == CommandField.C_CANCEL_RQ
            association.answer(0xFE00, field=CommandField.C_FIND_RSP, responded_id=command.responded_id)

    async with ScriptedPacs(script) as pacs:
        box.attach(pacs.port)
        requestor = await box.links.open(box.pacs, [STUDY_ROOT_FIND])
        number = requestor.begin(STUDY_ROOT_FIND, Command(CommandField.C_FIND_RQ, priority=0), match())
        await requestor.response(1)
        requestor.cancel(STUDY_ROOT_FIND, number)
        response = await requestor.response(1)
        assert response.command.status == 0xFE00
        assert response.final
        assert pacs.seen[-1].responded_id == number
        await box.links.done(requestor)
        assert pacs.ends == ["release"]


@pytest_twisted.ensureDeferred
async def test_what_still_runs_is_aborted_not_released(box: Box) -> None:
    async with ScriptedPacs(silence) as pacs:
        requestor = await asked(box, pacs)
        await box.links.done(requestor)
        assert pacs.ends == ["abort"]


@pytest_twisted.ensureDeferred
async def test_a_sop_class_the_pacs_refuses_is_an_error_of_its_own(box: Box) -> None:
    async with ScriptedPacs(silence, refuse=STUDY_ROOT_MOVE) as pacs:
        requestor = await asked(box, pacs)
        with pytest.raises(PacsCommunicationError, match="refuse la classe SOP"):
            requestor.begin(STUDY_ROOT_MOVE, Command(CommandField.C_MOVE_RQ))
        await box.links.done(requestor)


@pytest_twisted.ensureDeferred
async def test_message_ids_do_not_repeat_from_one_association_to_the_next(box: Box) -> None:
    """A late C-STORE of one move must not carry the number of the next."""
    async with ScriptedPacs(silence) as pacs:
        box.attach(pacs.port)
        numbers = set()
        for _ in range(5):
            requestor = await box.links.open(box.pacs, [STUDY_ROOT_MOVE])
            numbers.add(requestor.begin(STUDY_ROOT_MOVE, Command(CommandField.C_MOVE_RQ), match()))
            await box.links.done(requestor)
        assert len(numbers) == 5
        assert all(0 < number < 65536 for number in numbers)


# -- time ---------------------------------------------------------------------------------------------


def in_memory() -> tuple[Clock, Requestor, Wire, UpperLayer]:
    """A requestor and the PACS's upper layer, the association open between them."""
    clock = Clock()
    request = AssociationRequest("DRIMBOX", "PACS", (ProposedContext(1, VERIFICATION, (IMPLICIT,)),))
    requestor = Requestor(PACS, SETTINGS, clock, request)
    wire = Wire()
    requestor.makeConnection(wire)
    pacs = UpperLayer(16384)
    pacs.transport_indication()
    pacs.receive(wire.take())
    pacs.accept({1: IMPLICIT})
    requestor.dataReceived(b"".join(pacs.take_outgoing()))
    return clock, requestor, wire, pacs


def test_a_release_that_is_not_granted_ends_in_an_abort_and_then_in_a_cut() -> None:
    clock, requestor, wire, _ = in_memory()
    closing = apart(requestor.close())
    assert wire.take() == RELEASE_RQ
    clock.advance(5.1)
    assert wire.take()[0] == 7
    assert not closing.called
    clock.advance(SETTINGS.artim_timeout + 0.1)
    assert wire.aborted
    lose(requestor)
    assert closing.called
    assert clock.getDelayedCalls() == []


def test_an_association_without_a_byte_is_given_up_and_wakes_who_waits() -> None:
    clock, requestor, _, _ = in_memory()
    requestor.begin(VERIFICATION, Command(CommandField.C_ECHO_RQ))
    waiting = apart(requestor.response(1000))
    failures: list[Any] = []
    waiting.addErrback(failures.append)
    clock.advance(PACS.move_ceiling + 61)
    assert failures[0].check(PacsCommunicationError)
    lose(requestor)
    assert clock.getDelayedCalls() == []


# -- DB.SO.121 ----------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.121")
@pytest_twisted.ensureDeferred
async def test_never_more_associations_at_once_than_configured(box: Box) -> None:
    """As the PACS counts them, whatever becomes of each."""

    def script(association: Answering, command: Command, data: Dataset | None) -> None:
        turn = len(association.pacs.seen) % 4
        if turn == 0:
            reactor.callLater(0.01, association.answer, 0x0000)
        elif turn == 1:
            association.cut()
        elif turn == 2:
            association.abort()
        else:
            association.answer(0xA700)

    async with ScriptedPacs(script) as pacs:
        box.attach(pacs.port, max_associations=3)

        async def one() -> None:
            requestor = await box.links.open(box.pacs, [STUDY_ROOT_FIND], wait=10)
            try:
                requestor.begin(STUDY_ROOT_FIND, Command(CommandField.C_FIND_RQ, priority=0), match())
                await requestor.response(1)
            except PacsCommunicationError:
                pass
            finally:
                await box.links.done(requestor)

        await gatherResults([apart(one()) for _ in range(40)])
        assert pacs.most == 3
        assert len(pacs.seen) == 40
        await until(lambda: pacs.open == 0)


@pytest.mark.requirement("DB.SO.121")
@pytest_twisted.ensureDeferred
async def test_waiting_for_a_place_is_bounded(box: Box) -> None:
    async with ScriptedPacs(silence) as pacs:
        box.attach(pacs.port, max_associations=1)
        held = await box.links.open(box.pacs, [STUDY_ROOT_FIND])
        with pytest.raises(PacsBusy, match="1 associations"):
            await box.links.open(box.pacs, [STUDY_ROOT_FIND], wait=0.05)
        waiting = apart(box.links.open(box.pacs, [STUDY_ROOT_FIND], wait=5))
        await pause(0.02)
        assert not waiting.called
        await box.links.done(held)
        await box.links.done(await waiting)


@pytest.mark.requirement("DB.SO.121")
@pytest_twisted.ensureDeferred
async def test_a_failed_association_gives_its_place_back(box: Box) -> None:
    with SimulatedPacs("PACS", behaviour=Behaviour(reject=(2, 3, 2))) as simulated:
        box.attach(simulated.port, max_associations=1)
        for how in (Behaviour(reject=(2, 3, 2)), Behaviour(connection="close"), Behaviour(down=True)):
            simulated.behaviour = how
            with pytest.raises(PacsCommunicationError):
                await box.links.open(box.pacs, [STUDY_ROOT_FIND])
        simulated.behaviour = Behaviour()
        await box.links.done(await box.links.open(box.pacs, [STUDY_ROOT_FIND], wait=0.1))
        await in_thread(lambda: None)
