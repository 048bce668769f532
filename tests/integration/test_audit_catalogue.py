"""Each audit event of the Source, made by the real thing and read where it ends: at the audit repository.

What is expected is written here from the tables of requirements.md 3.8 and interfaces.md 11, field by
field, as an auditor would read them; nothing is taken from the code that makes the messages.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from lxml import etree

from drimbox.model import MessageAction
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.ris import SimOrder
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from tests.audit.test_atna import schema
from tests.integration.feed_stand import POOL, SECOND_STRUCTURE, Studies
from tests.integration.operator import drimbox
from tests.integration.test_audit_export import AuditedStand
from tests.integration.waiting import until, wait

INS, RPPS, REQUESTING = "284070100499094", "899700000001", "1777777777"
#: `<structure>/<what the gateway calls it>`: `[[structure]] internal_id`.
SYSTEM = f"{SECOND_STRUCTURE}/interne-z"
SOURCE, DESTINATION, APPLICATION = "110153", "110152", "110150"
UNKNOWN = "INCONNU"


@attrs.define
class World:
    """What was done, and what the repository got of it."""

    stand: AuditedStand
    pacs: SimulatedPacs
    studies: Studies
    began: datetime
    names: dict[str, str] = attrs.field(factory=dict)

    @property
    def fqdn(self) -> str:
        return self.stand.sites[0]

    def dmp(self) -> str:
        return f"https://localhost:{self.stand.dmp.port}"

    def read(self, kind: str, study: str = "", *, outcome: str = "0", action: str = "") -> list[Any]:
        """Return the messages of a kind about a study, oldest first."""
        found = []
        for one in self.stand.server.messages:
            event = one.message.find("EventIdentification")
            fits = event.find("EventTypeCode").get("csd-code") == kind
            fits = fits and event.get("EventOutcomeIndicator") == outcome
            fits = fits and (not action or event.get("EventActionCode") == action)
            if fits and study in told(one.message):
                found.append(one.message)
        return found

    def one(self, kind: str, study: str = "", **more: str) -> Any:
        found = self.read(kind, study, **more)
        assert len(found) == 1, [told(each) for each in found]
        return found[0]


def told(message: Any) -> str:
    """Return all values of a message in one text, details decoded."""
    values = [value for element in message.iter() for value in element.attrib.values()]
    values += [
        base64.b64decode(one.get("value")).decode() for one in message.iter("ParticipantObjectDetail")
    ]
    return " ".join(values)


def event_of(message: Any) -> tuple[str | None, ...]:
    """Return EventID, its system, action, type and its system, description."""
    event = message.find("EventIdentification")
    head, kind = event.find("EventID"), event.find("EventTypeCode")
    return (
        head.get("csd-code"),
        head.get("codeSystemName"),
        event.get("EventActionCode"),
        kind.get("csd-code"),
        kind.get("codeSystemName"),
        event.findtext("EventOutcomeDescription"),
    )


def participants_of(message: Any) -> list[tuple[str | None, ...]]:
    """Return each participant: role, UserID, AlternativeUserID, requestor, network type and address."""
    found = []
    for one in message.findall("ActiveParticipant"):
        role = one.find("RoleIDCode")
        assert role is None or role.get("codeSystemName") == "DCM"
        found.append(
            (
                role.get("csd-code") if role is not None else None,
                *(one.get(name) for name in ("UserID", "AlternativeUserID", "UserIsRequestor")),
                *(one.get(name) for name in ("NetworkAccessPointTypeCode", "NetworkAccessPointID")),
            )
        )
    return found


def objects_of(message: Any) -> list[tuple[Any, ...]]:
    """Return each object: type, role, life cycle, type of its identifier, identifier, details."""
    return [
        (
            one.get("ParticipantObjectTypeCode"),
            one.get("ParticipantObjectTypeCodeRole"),
            one.get("ParticipantObjectDataLifeCycle"),
            one.find("ParticipantObjectIDTypeCode").get("csd-code"),
            one.get("ParticipantObjectID"),
            [
                (detail.get("type"), base64.b64decode(detail.get("value")).decode())
                for detail in one.findall("ParticipantObjectDetail")
            ],
        )
        for one in message.findall("ParticipantObjectIdentification")
    ]


__all__ = ["schema"]
#: The patient of 3.8.1, 3.8.5 and of the exchanges with the DMP.
PATIENT = ("1", "1", "2", "2", INS, [])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("catalogue")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = AuditedStand(folder / "stand", PacsAddress("PACS", pacs.port, POOL))
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    world = World(stand, pacs, Studies(folder / "studies"), datetime.now(UTC))
    wait(stand.up())
    try:
        wait(_everything(world))
        yield world
    finally:
        wait(stand.stop())
        pacs.stop()


async def _everything(world: World) -> None:
    """Do what leaves each event, then wait until the repository has all of them."""
    stand, names = world.stand, world.names
    two = (SimOrder(), SimOrder(accession="ACC-2", accession_authority="2.999.5.9"))
    second = {"structure_id": SECOND_STRUCTURE}
    study, other = world.studies.new(world.pacs), world.studies.new(world.pacs)
    number = await stand.report(study, other, report={**second, "orders": two})
    names |= {"study": study.study_uid, "other": other.study_uid, "document": f"2.999.7.{number}"}
    names["kos"] = (await stand.published_one(study)).unique_id
    await _images(world, study)
    withdrawn = world.studies.new(world.pacs)
    number = await stand.report(withdrawn, report=second, kind="MDM")
    names |= {"withdrawn": withdrawn.study_uid, "mdm": f"2.999.7.{number}"}
    names["gone"] = (await stand.published_one(withdrawn)).unique_id
    again = {**second, "document_id": names["mdm"], "set_id": names["mdm"]}
    await stand.report(withdrawn, report=again, kind="MDM", action=MessageAction.DELETE)
    await until(lambda: not stand.kos(withdrawn), what="the withdrawal")
    changed = {**second, "replaces": names["document"], "orders": two[:1]}
    await stand.report(study, other, report=changed, action=MessageAction.REPLACE)
    await stand.idle()
    absent, bare = world.studies.new(), world.studies.new()
    await stand.report(absent, report=second)
    await stand.notice_about(absent.study_uid, "E004")
    names["absent"] = absent.study_uid
    names["bare"] = bare.study_uid
    await stand.report(bare, report={**second, "orders": ()})
    broken = stand.message("2.999.2", number=999, kind="MDM", document_field="^TEXT^XML^Base64^PGE+")
    assert (await stand.send(broken)).code == "AE"
    for command in (("certificates", "reload"), ("audit", "search", "--ins", INS, "--limit", "1")):
        done = await drimbox(stand.config, *command)
        assert done.returncode == 0, done.stderr
    await stand.idle()
    await stand.stop_gateway()
    await stand.start_gateway()
    stand.server.up()
    await stand.all_arrived()


async def _images(world: World, study: GeneratedStudy) -> None:
    """Ask for images: served, cut, refused, and without a certificate."""
    stand, kos = world.stand, world.names["kos"]
    ask = (study.study_uid, study.series[0].series_uid, kos)
    assert (await stand.fetch(*ask, situation=REQUESTING)).complete
    world.pacs.behaviour = Behaviour(stop_after=1, stop="close")
    assert not (await stand.fetch(*ask, situation=REQUESTING)).complete
    world.pacs.behaviour = Behaviour()
    assert (await stand.fetch(*ask, token="inconnu")).status == 403
    assert (await stand.fetch("2.999.1", ask[1], kos)).status == 404
    await stand.fetch(*ask, certificate=None)


# --- 3.8.1 ------------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.43")
def test_a_report_by_oru(world: World) -> None:
    names = world.names
    message = world.read("RAD-128", names["other"])[0]
    assert event_of(message) == ("110107", "DCM", "C", "RAD-128", "IHE Transactions", None)
    assert participants_of(message) == [
        (SOURCE, "ACC-7788^2.999.5.3;ACC-2^2.999.5.9", None, "false", "2", LOOPBACK),
        (DESTINATION, SYSTEM, RPPS, "false", "1", world.fqdn),
    ]
    studies = [("StudyInstanceUID", names["study"]), ("StudyInstanceUID", names["other"])]
    assert objects_of(message) == [PATIENT, ("2", "20", "2", "9", names["document"], studies)]


@pytest.mark.requirement("DB.SO.43")
def test_a_report_by_mdm(world: World) -> None:
    names = world.names
    message = world.read("CARD-7", names["withdrawn"])[0]
    assert event_of(message) == ("110107", "DCM", "C", "CARD-7", "IHE Transactions", None)
    assert participants_of(message) == [
        (SOURCE, "ACC-7788^2.999.5.3", None, "false", "2", LOOPBACK),
        (DESTINATION, SYSTEM, RPPS, "false", "1", world.fqdn),
    ]
    study = [("StudyInstanceUID", names["withdrawn"])]
    assert objects_of(message) == [PATIENT, ("2", "20", "2", "9", names["mdm"], study)]


@pytest.mark.requirement("DB.SO.43", "DB.SO.45")
def test_a_report_refused_at_the_door_for_it_cannot_be_read(world: World) -> None:
    message = world.one("CARD-7", outcome="8")
    *head, description = event_of(message)
    assert head == ["110107", "DCM", "C", "CARD-7", "IHE Transactions"]
    assert (description or "").startswith("E005 - ")
    source, destination = participants_of(message)
    assert (source[0], source[1], source[3:]) == (SOURCE, UNKNOWN, ("false", "2", LOOPBACK))
    assert (destination[0], destination[2:]) == (DESTINATION, (UNKNOWN, "false", "1", world.fqdn))
    # Known by PID-3 and TXA-12 of the message around it.
    assert objects_of(message) == [PATIENT, ("2", "20", "2", "9", "2.999.7.999", [])]
    # And that no KOS comes of it.
    (failed,) = [one for one in world.read("ITI-41", outcome="8") if "lisible" in (event_of(one)[5] or "")]
    assert objects_of(failed) == [PATIENT, ("2", "3", "10", "110180", UNKNOWN, [])]


# --- 3.8.2 ------------------------------------------------------------------------------------------


@pytest.mark.requirement("SC.DMP/CONF.14")
def test_a_publication_and_its_replacement(world: World) -> None:
    names = world.names
    first, second = world.read("ITI-41", names["study"])
    for message in (first, second):
        assert event_of(message) == ("110106", "DCM", "R", "ITI-41", "IHE Transactions", None)
        assert participants_of(message) == [
            (SOURCE, SYSTEM, RPPS, "false", "1", world.fqdn),
            (DESTINATION, world.dmp(), None, "false", "1", "localhost"),
        ]
        patient, submission, document, study = objects_of(message)
        assert patient == PATIENT
        assert submission[:4] == ("2", "20", None, "urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd")
        assert document[:4] == ("2", "3", "10", "9")
        assert study == ("2", "3", "10", "110180", names["study"], [])
    assert objects_of(first)[2][4:] == (names["kos"], [])
    assert objects_of(second)[2][5] == [("Association", "RPLC")]


@pytest.mark.requirement("SC.DMP/CONF.14")
def test_a_withdrawal(world: World) -> None:
    names = world.names
    message = world.one("ITI-57", names["withdrawn"])
    assert event_of(message) == ("110106", "DCM", "U", "ITI-57", "IHE Transactions", None)
    assert participants_of(message) == [
        (SOURCE, SYSTEM, RPPS, "false", "1", world.fqdn),
        (DESTINATION, world.dmp(), None, "false", "1", "localhost"),
    ]
    patient, _, document, study = objects_of(message)
    assert (patient, document[4], study[4]) == (PATIENT, names["gone"], names["withdrawn"])


@pytest.mark.requirement("SC.DMP/CONF.14")
@pytest.mark.parametrize(("kind", "system"), [("TD0.2", "DMP"), ("ITI-18", "IHE Transactions")])
def test_a_question_to_the_dmp(world: World, kind: str, system: str) -> None:
    message = world.read(kind)[0]
    assert event_of(message) == ("110112", "DCM", "E", kind, system, None)
    assert participants_of(message) == [
        (SOURCE, SYSTEM, RPPS, "false", "1", world.fqdn),
        (DESTINATION, world.dmp(), None, "false", "1", "localhost"),
    ]
    patient, *others = objects_of(message)
    assert patient == PATIENT
    if kind == "TD0.2":
        assert others == []
        return
    query, document = others
    get_documents = "urn:uuid:5c4f972b-d56b-40ac-a5fc-c8ca9b40b9d4"
    assert query == ("2", "24", None, "ITI-18", get_documents, [("QueryEncoding", "UTF-8")])
    assert document[:4] == ("2", "3", None, "9")
    (asked,) = message.iter("ParticipantObjectQuery")
    request = etree.fromstring(base64.b64decode(asked.text))
    assert etree.QName(request).localname == "AdhocQueryRequest"
    assert f"('{document[4]}')" in "".join(request.itertext())


@pytest.mark.requirement("DB.SO.45")
@pytest.mark.parametrize(("name", "code"), [("absent", "E004"), ("bare", "E005")])
def test_a_manifest_that_was_not_made(world: World, name: str, code: str) -> None:
    message = world.one("ITI-41", world.names[name], outcome="8")
    *head, description = event_of(message)
    assert head == ["110106", "DCM", "R", "ITI-41", "IHE Transactions"]
    assert description is not None
    assert description.startswith(f"{code} - ")
    # Nothing was sent: no destination.
    assert participants_of(message) == [(SOURCE, SYSTEM, RPPS, "false", "1", world.fqdn)]
    assert objects_of(message) == [PATIENT, ("2", "3", "10", "110180", world.names[name], [])]


# --- 3.8.3 ------------------------------------------------------------------------------------------


def images(world: World, code: str) -> Any:
    outcomes = ("0",) if not code else ("4", "8")
    found = [one for outcome in outcomes for one in world.read("RAD-107", outcome=outcome)]
    fitting = [one for one in found if not code or (event_of(one)[5] or "").startswith(code)]
    assert len(fitting) == 1, [event_of(one) for one in found]
    return fitting[0]


def professional(world: World) -> str:
    return str(next(iter(world.stand.psc.service.professionals.values())).id)


def document(world: World, study: str = "") -> list[tuple[Any, ...]]:
    location = [("Repository Unique ID", "1.2.250.1.999.349.1")]
    return [("2", "3", "10", "110180", study or world.names["study"], location)]


@pytest.mark.requirement("DB.SO.46")
def test_images_served(world: World) -> None:
    message = images(world, "")
    assert event_of(message) == ("110106", "DCM", "R", "RAD-107", "IHE Transactions", None)
    assert participants_of(message) == [
        (SOURCE, REQUESTING, professional(world), "false", "2", LOOPBACK),
        (DESTINATION, SYSTEM, None, "false", "1", world.fqdn),
    ]
    assert objects_of(message) == document(world)


@pytest.mark.requirement("DB.SO.46", "DB.SO.47")
def test_images_cut_half_way_are_recorded_when_they_are(world: World) -> None:
    message = next(
        one
        for outcome in ("4", "8")
        for one in world.read("RAD-107", outcome=outcome)
        if "interrompue" in (event_of(one)[5] or "")
    )
    assert (event_of(message)[5] or "")[:3] == "E10"
    assert participants_of(message) == [
        (SOURCE, REQUESTING, professional(world), "false", "2", LOOPBACK),
        (DESTINATION, SYSTEM, None, "false", "1", world.fqdn),
    ]
    assert objects_of(message) == document(world)


@pytest.mark.requirement("DB.SO.46", "DB.SO.47")
def test_images_refused_for_want_of_a_good_token(world: World) -> None:
    message = next(
        one
        for outcome in ("4", "8")
        for one in world.read("RAD-107", outcome=outcome)
        if (event_of(one)[5] or "").startswith("E1104") and "interrompue" not in (event_of(one)[5] or "")
    )
    source, destination = participants_of(message)
    assert source == (SOURCE, UNKNOWN, UNKNOWN, "false", "2", LOOPBACK)
    assert destination[4:] == ("1", world.fqdn)
    assert objects_of(message) == document(world)


@pytest.mark.requirement("DB.SO.47")
def test_images_of_a_manifest_nobody_knows(world: World) -> None:
    message = images(world, "E1001")
    assert event_of(message)[:5] == ("110106", "DCM", "R", "RAD-107", "IHE Transactions")
    source, destination = participants_of(message)
    assert source == (SOURCE, UNKNOWN, professional(world), "false", "2", LOOPBACK)
    assert destination == (DESTINATION, f"{UNKNOWN}/{UNKNOWN}", None, "false", "1", world.fqdn)
    assert objects_of(message) == document(world, "2.999.1")


@pytest.mark.requirement("DB.SO.47")
def test_a_consumer_whose_handshake_was_refused(world: World) -> None:
    message = images(world, "E1101")
    source, destination = participants_of(message)
    assert source == (SOURCE, UNKNOWN, UNKNOWN, "false", "2", LOOPBACK)
    assert destination[4:] == ("1", world.fqdn)
    assert objects_of(message) == [("2", "3", "10", "110180", UNKNOWN, [("Repository Unique ID", UNKNOWN)])]


# --- the gateway itself -----------------------------------------------------------------------------


@pytest.mark.requirement("DB.CS.06")
def test_start_and_stop(world: World) -> None:
    assert len(world.read("110120")) == 2
    for kind in ("110120", "110121"):
        message = world.read(kind)[0]
        assert event_of(message) == ("110100", "DCM", "E", kind, "DCM", None)
        assert participants_of(message) == [(APPLICATION, "DRIMbox", None, "false", "1", world.fqdn)]
        assert objects_of(message) == []


@pytest.mark.requirement("DB.CS.06")
def test_what_an_administrator_did(world: World) -> None:
    message = world.read("110132")[0]
    assert event_of(message) == ("110113", "DCM", "E", "110132", "DCM", None)
    application, person = participants_of(message)
    assert application == (APPLICATION, "DRIMbox", None, "false", "1", world.fqdn)
    assert person[3] == "true"
    ((kind, role, _, id_type, _, details),) = objects_of(message)
    assert (kind, role, id_type) == ("2", "13", "110182")
    assert details[0][0] == "Alert Description"


@pytest.mark.requirement("DB.CS.10")
def test_a_search_of_the_trail(world: World) -> None:
    message = world.one("AUDIT-SEARCH")
    assert event_of(message)[:3] == ("110101", "DCM", "R")
    person, program = participants_of(message)
    assert person[1] == pwd.getpwuid(os.getuid()).pw_name
    assert (person[3], person[5]) == ("true", socket.gethostname())
    assert program[:2] == (APPLICATION, "drimbox audit search")
    ((kind, role, _, id_type, _, details),) = objects_of(message)
    assert (kind, role, id_type) == ("2", "13", "12")
    assert ("ins", INS) in details
    (name,) = message.iter("ParticipantObjectName")
    assert name.text == "Security Audit Log"


@pytest.mark.requirement("DB.CS.96")
def test_every_message_is_valid_against_the_published_schema(world: World, schema: etree.XMLSchema) -> None:
    kinds = set()
    for one in world.stand.server.messages:
        schema.assertValid(one.message)
        kinds.add(event_of(one.message)[3])
    assert kinds >= {"RAD-128", "CARD-7", "TD0.2", "ITI-18", "ITI-41", "ITI-57", "RAD-107", "AUDIT-SEARCH"}


@pytest.mark.requirement("DB.CS.96")
def test_what_all_messages_have(world: World) -> None:
    rows = world.stand.query("SELECT instant, payload FROM audit ORDER BY id")
    latest = datetime.now(UTC) + timedelta(seconds=1)
    for one, (_, payload) in zip(world.stand.server.messages, rows, strict=False):
        event = one.message.find("EventIdentification")
        when = datetime.fromisoformat(event.get("EventDateTime"))
        assert world.began <= one.instant <= latest
        assert abs(when - one.instant) < timedelta(milliseconds=1)
        assert one.instant == datetime.fromisoformat(json.loads(payload)["instant"])
        source = one.message.find("AuditSourceIdentification")
        assert source.get("AuditSourceID") == "drimbox-349"
        assert source.find("AuditSourceTypeCode").get("csd-code") == "4"
        assert (one.priority, one.host, one.application) == (85, world.fqdn, "DRIMbox")
