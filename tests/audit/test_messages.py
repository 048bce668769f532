"""Each audit message carries the fields that requirements.md 3.8 prints, and says what it does not know."""

from __future__ import annotations

from datetime import UTC, datetime

import attrs
import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from drimbox.audit import messages
from drimbox.audit.messages import Alert, DmpExchange
from drimbox.errors import (
    IntrospectionTimeout,
    KosUnknown,
    PacsCommunicationError,
    PatientNotInDmp,
    PublicationError,
    ReportNotInterpretable,
    RetrieveTimeout,
    StudyNotInPacs,
    TooManyRequests,
)
from drimbox.model import (
    Identifier,
    KosState,
    MessageAction,
    Organization,
    Person,
    Report,
    ReportMessage,
    RequestIds,
    StudyAct,
    Visibility,
)
from drimbox.ports import ArchivedKos, AuditEvent, Introspection
from tests.store.samples import INS, report, submission

DNS_NAME = "db1.349.example.test"


def message(trigger: str = "ORU^R01", **changes: object) -> ReportMessage:
    values: dict[str, object] = {
        "control_id": "M1",
        "trigger": trigger,
        "sending_application": "RIS",
        "sending_facility": "CLINIQUE",
        "action": MessageAction.NEW,
        "ipp": None,
        "ins_qualified": True,
        "visibility": Visibility(),
        "to_dmp": True,
        "secret_connection": False,
        "visibility_change_only": False,
        "patient_class": "O",
        "prt_structure": Organization("1470003641"),
        "document": b"",
        **changes,
    }
    names = {field.name for field in attrs.fields(ReportMessage)}
    return ReportMessage(**{name: value for name, value in values.items() if name in names})  # type: ignore[arg-type]


def two_studies() -> Report:
    one = report("2.25.1")
    second = RequestIds(Identifier("ACC-2", "2.25.53"), Identifier("ORD-2", "2.25.54"))
    act: StudyAct = attrs.evolve(one.acts[0], study_uid="2.25.2")
    return attrs.evolve(
        one,
        requests=(*one.requests, second, second),
        acts=(*one.acts, act, act),
        # Three organisations and people, so that a field taken from the wrong one shows.
        structure=Organization("3510125725000"),
        author_organization=Organization("1240001451"),
        legal_authenticator=Person("899700000002"),
    )


def received(**changes: object) -> AuditEvent:
    values: dict[str, object] = {
        "message": message(),
        "report": two_studies(),
        "ris_address": "192.0.2.10",
        "source_name": DNS_NAME,
        **changes,
    }
    return messages.report_received(**values)  # type: ignore[arg-type]


@pytest.mark.requirement("DB.SO.43")
def test_a_report_received_tells_source_destination_patient_and_document() -> None:
    event = received(internal_id="clinique")
    assert (event.event_id, event.action, event.outcome) == ("110107", "C", 0)
    assert event.outcome_description == ""
    assert event.event_type == ("RAD-128", "IHE Transactions", "Send Imaging Result")
    source, destination = event.participants
    assert source.user_id == "ACC-7788^2.25.53;ACC-2^2.25.53"
    assert (source.role, source.requestor) == ("110153", False)
    assert (source.network_type, source.network_id) == ("2", "192.0.2.10")
    assert destination.user_id == "1240001451/clinique"
    assert destination.alternative_user_id == "899700000002"
    assert (destination.role, destination.network_type) == ("110152", "1")
    assert destination.network_id == DNS_NAME
    patient, document = event.objects
    assert (patient.id, patient.type, patient.role) == (INS, "1", "1")
    assert (patient.life_cycle, patient.id_type) == ("2", "2")
    assert (document.id, document.type, document.role) == ("2.25.900", "2", "20")
    assert (document.life_cycle, document.id_type) == ("2", "9")
    assert document.details == (("StudyInstanceUID", "2.25.1"), ("StudyInstanceUID", "2.25.2"))
    assert (event.patient_ins, event.study_uid) == (INS, "2.25.1 2.25.2")


@pytest.mark.requirement("DB.SO.43")
def test_an_mdm_message_is_card_7() -> None:
    event = received(message=message("MDM^T02"))
    assert event.event_type == ("CARD-7", "IHE Transactions", "Encapsulated Report Submission")


def test_without_internal_identifier_the_structure_names_itself() -> None:
    assert received().participants[1].user_id == "1240001451/1240001451"


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("192.0.2.1", "2"),
        ("2001:db8::1", "2"),
        ("fe80::1%eth0", "2"),
        ("[::1]", "2"),
        ("ris.test", "1"),
    ],
)
def test_addresses_are_told_from_names(address: str, kind: str) -> None:
    assert received(ris_address=address).participants[0].network_type == kind


@pytest.mark.requirement("DB.SO.43", "DB.SO.45")
def test_a_report_that_cannot_be_read_is_recorded_with_e005() -> None:
    error = ReportNotInterpretable("StudyInstanceUID absent")
    event = received(report=None, error=error)
    assert event.outcome == 8
    assert event.outcome_description.startswith("E005 - ")
    assert event.outcome_description.endswith(": StudyInstanceUID absent")
    source, destination = event.participants
    assert (source.user_id, source.alternative_user_id) == ("INCONNU", "RIS")
    assert destination.user_id == "1470003641/1470003641", "PRT-8 is what is left to know the structure"
    assert destination.alternative_user_id == "INCONNU"
    assert [one.id for one in event.objects] == ["INCONNU", "INCONNU"]
    assert (event.patient_ins, event.study_uid) == ("", "")
    nothing = received(message=None, report=None, error=error)
    assert nothing.participants[1].user_id == "INCONNU/INCONNU"


@pytest.mark.requirement("SC.DMP/CONF.14")
def test_a_publication_names_patient_submission_document_and_dmp() -> None:
    event = messages.kos_published(
        submission=submission(),
        study_uid="2.25.1",
        dmp="https://lps2.dmp.test:443/si-dmp-server",
        source_name=DNS_NAME,
        replaced=True,
    )
    assert (event.event_id, event.action, event.outcome) == ("110106", "R", 0)
    assert event.event_type == ("ITI-41", "IHE Transactions", "Provide and Register Document Set-b")
    us, dmp = event.participants
    assert (us.user_id, us.role) == ("1240001451/1240001451", "110153")
    assert (us.alternative_user_id, us.network_id) == ("899700000001", DNS_NAME)
    assert (dmp.user_id, dmp.role) == ("https://lps2.dmp.test:443/si-dmp-server", "110152")
    assert (dmp.network_type, dmp.network_id) == ("1", "lps2.dmp.test")
    assert [(one.id, one.type, one.role) for one in event.objects] == [
        (INS, "1", "1"),
        ("2.25.500.1", "2", "20"),
        ("2.25.500", "2", "3"),
        ("2.25.1", "2", "3"),
    ]
    assert event.objects[1].id_type == messages.SUBMISSION_SET
    assert event.objects[2].details == (("Association", "RPLC"),)
    assert (event.patient_ins, event.study_uid) == (INS, "2.25.1")


@pytest.mark.requirement("SC.DMP/CONF.14")
def test_a_removal_is_an_update_document_set() -> None:
    event = messages.kos_removed(
        submission=submission(), study_uid="2.25.1", dmp="https://d.test", source_name=DNS_NAME
    )
    assert (event.action, event.event_type[0], event.outcome) == ("U", "ITI-57", 0)


@pytest.mark.requirement("DB.SO.45")
@pytest.mark.parametrize(
    ("error", "indicator", "start"),
    [
        (PacsCommunicationError("PACS muet"), 4, "E003 - "),
        (StudyNotInPacs(), 8, "E004 - "),
        (PatientNotInDmp(), 8, "E006 - "),
        (PublicationError("XDSRegistryMetadataError : non"), 8, "E007 - "),
    ],
)
def test_a_failure_to_publish_carries_its_code(error: Exception, indicator: int, start: str) -> None:
    event = messages.kos_failed(
        report=report(),
        study_uid="2.25.1",
        source_name=DNS_NAME,
        error=error,  # type: ignore[arg-type]
    )
    assert event.outcome == indicator
    assert event.outcome_description.startswith(start)
    assert len(event.participants) == 1, "nothing was sent: the DMP takes no part"
    assert [one.id for one in event.objects] == [INS, "2.25.1"]
    assert event.patient_ins == INS


def test_a_failure_at_the_dmp_names_it_and_its_error() -> None:
    event = messages.kos_failed(
        report=report(),
        study_uid="2.25.1",
        source_name=DNS_NAME,
        error=PublicationError("XDSRegistryMetadataError"),
        dmp="https://d.test/x",
        submission=submission(),
    )
    assert event.participants[1].network_id == "d.test"
    assert event.outcome_description.endswith("XDSRegistryMetadataError")


@pytest.mark.requirement("SC.DMP/CONF.14")
@pytest.mark.parametrize(
    ("kind", "event_id", "action", "code", "roles"),
    [
        (DmpExchange.EXISTENCE, "110112", "E", "TD0.2", ["110153", "110152"]),
        (DmpExchange.SEARCH, "110112", "E", "ITI-18", ["110153", "110152"]),
        (DmpExchange.RETRIEVE, "110107", "C", "ITI-43", ["110152", "110153"]),
    ],
)
def test_questions_to_the_dmp_are_recorded(
    kind: DmpExchange, event_id: str, action: str, code: str, roles: list[str]
) -> None:
    event = messages.dmp_exchange(
        kind=kind,
        report=report(),
        structure_id="1240001451",
        dmp="https://d.test",
        source_name=DNS_NAME,
        document_uid="2.25.500",
        study_uid="2.25.1",
        query=("urn:uuid:1", "<q/>") if kind is DmpExchange.SEARCH else None,
    )
    assert (event.event_id, event.action, event.event_type[0]) == (event_id, action, code)
    assert [one.role for one in event.participants] == roles
    asked = ["urn:uuid:1"] if kind is DmpExchange.SEARCH else []
    assert [one.id for one in event.objects] == [INS, *asked, "2.25.500"]


def kos() -> ArchivedKos:
    return ArchivedKos(
        id=1,
        site="s",
        study_uid="2.25.1",
        sop_instance_uid="2.25.500",
        state=KosState.PUBLISHED,
        data=b"",
        metadata=b"",
        fingerprint="f",
        structure_id="1240001451",
        patient_ins=INS,
        patient_ins_oid="1.2.250.1.213.1.4.10",
        patient_id="IPP-77",
        report_ids=("2.25.900",),
        entry_uuid=None,
        created_at=datetime(2026, 1, 12, tzinfo=UTC),
    )


def served(**changes: object) -> AuditEvent:
    values: dict[str, object] = {
        "study_uid": "2.25.1",
        "caller_address": "198.51.100.7",
        "source_name": DNS_NAME,
        "kos": kos(),
        "introspection": Introspection("899700000009", "1470003641", None),
        "repository_uid": "2.25.77",
        **changes,
    }
    return messages.images_served(**values)  # type: ignore[arg-type]


@pytest.mark.requirement("DB.SO.46")
def test_images_served_tell_who_asked_and_for_what() -> None:
    event = served()
    assert (event.event_id, event.action, event.outcome) == ("110106", "R", 0)
    assert event.event_type == ("RAD-107", "IHE Transactions", "WADO-RS Retrieve")
    caller, us = event.participants
    assert (caller.user_id, caller.alternative_user_id) == ("1470003641", "899700000009")
    assert (caller.role, caller.network_type, caller.network_id) == ("110153", "2", "198.51.100.7")
    assert (us.user_id, us.role) == ("1240001451/1240001451", "110152")
    assert (us.network_type, us.network_id) == ("1", DNS_NAME)
    assert not caller.requestor
    assert not us.requestor
    (document,) = event.objects
    assert (document.id, document.type, document.role) == ("2.25.1", "2", "3")
    assert (document.life_cycle, document.id_type) == ("10", "110180")
    assert document.details == (("Repository Unique ID", "2.25.77"),)
    assert (event.patient_ins, event.study_uid) == (INS, "2.25.1"), "found by the patient's INS"


@pytest.mark.requirement("DB.SO.46")
def test_the_viewer_is_another_transaction() -> None:
    assert served(viewer=True).event_type == (
        "RAD-106",
        "IHE Transactions",
        "IHE Invoke Image Display",
    )


@pytest.mark.requirement("DB.SO.46")
@pytest.mark.parametrize(
    ("introspection", "situation", "structure", "professional"),
    [
        (None, "", "INCONNU", "INCONNU"),
        (None, "1240009999", "1240009999", "INCONNU"),
        (Introspection("899700000009", None, None), "1240009999", "1240009999", "899700000009"),
        (Introspection("899700000009", None, None), "", "INCONNU", "899700000009"),
        (Introspection(None, "1470003641", None), "1240009999", "1470003641", "INCONNU"),
        (Introspection("", "", None), "", "INCONNU", "INCONNU"),
    ],
)
def test_what_introspection_does_not_give_is_inconnu(
    introspection: Introspection | None, situation: str, structure: str, professional: str
) -> None:
    caller = served(introspection=introspection, situation=situation).participants[0]
    assert (caller.user_id, caller.alternative_user_id) == (structure, professional)


@pytest.mark.requirement("DB.SO.46")
def test_a_patient_is_named_by_his_traits() -> None:
    caller = served(patient=report().patient, introspection=None).participants[0]
    assert caller.user_id == "Visualisation Patient"
    assert caller.alternative_user_id == "PAT-TROIS;DOMINIQUE MARIE-LOUISE;F;19840711;01004"


@pytest.mark.requirement("DB.SO.47")
@pytest.mark.parametrize(
    ("error", "cut", "indicator", "start", "end"),
    [
        (KosUnknown(), False, 8, "E1001 - ", "source"),
        (TooManyRequests(retry_after=5), False, 4, "E1003 - ", "atteint"),
        (RetrieveTimeout("60 s sans image"), True, 8, "E1005 - ", "(réponse interrompue)"),
        (IntrospectionTimeout(), False, 8, "E1104 - ", "dépassé"),
    ],
)
def test_images_not_served_carry_their_code(
    error: Exception, cut: bool, indicator: int, start: str, end: str
) -> None:
    event = served(error=error, cut=cut)
    assert event.outcome == indicator
    assert event.outcome_description.startswith(start)
    assert event.outcome_description.endswith(end)


def test_a_request_without_kos_is_recorded_all_the_same() -> None:
    event = served(kos=None, repository_uid="", error=KosUnknown())
    assert event.participants[1].user_id == "INCONNU/INCONNU"
    assert event.objects[0].details == (("Repository Unique ID", "INCONNU"),)
    assert event.patient_ins == ""


def test_start_stop_and_alerts_are_recorded() -> None:
    start = messages.application_start(name="drimbox-349", source_name=DNS_NAME)
    stop = messages.application_stop(name="drimbox-349", source_name=DNS_NAME)
    assert (start.event_id, start.event_type[0]) == ("110100", "110120")
    assert (stop.event_id, stop.event_type[0]) == ("110100", "110121")
    alert = messages.security_alert(
        kind=Alert.NODE_AUTHENTICATION,
        name="drimbox-349",
        source_name=DNS_NAME,
        subject="CN=db2.example.test",
        description="certificat révoqué",
        peer_address="198.51.100.7",
    )
    assert (alert.event_id, alert.event_type[0], alert.outcome) == ("110113", "110126", 8)
    assert [one.network_id for one in alert.participants] == [DNS_NAME, "198.51.100.7"]
    assert alert.objects[0].details == (("Alert Description", "certificat révoqué"),)


def test_dicom_codes_are_those_of_the_standard() -> None:
    """pydicom's own copy of PS3.16 is the judge."""
    events = [
        messages.application_start(name="n", source_name=DNS_NAME),
        messages.application_stop(name="n", source_name=DNS_NAME),
    ]
    types = [event.event_type for event in events] + [alert.value for alert in Alert]
    members = [getattr(codes.DCM, name) for name in dir(codes.DCM)]
    known = {code.value: code.meaning for code in members if isinstance(code, Code)}
    assert len(known) > 1000
    for value, scheme, meaning in types:
        assert scheme == "DCM"
        assert known[value].lower() == meaning.lower()
