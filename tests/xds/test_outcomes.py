"""The table of interfaces.md 4.9, line by line, and the scrubbing of what the DMP says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.ports import Accepted, DmpUnavailable, NotAdmitted, Outcome, Refused
from drimbox.xds.answers import Existence, Fault, RegistryAnswer, RegistryError
from drimbox.xds.outcomes import (
    existence_outcome,
    fault_outcome,
    http_outcome,
    registry_outcome,
    scrub,
)
from tests.xds.builders import INS

BAD_SUBMISSION = [
    "XDSRegistryDuplicateUniqueIdInMessage",
    "XDSRepositoryDuplicateUniqueIdInMessage",
    "XDSNonIdenticalHash",
    "XDSNonIdenticalSize",
    "XDSRegistryMetadataError",
    "XDSMissingDocument",
    "XDSMissingDocumentMetadata",
    "XDSRepositoryMetadataError",
    "XDSExtraMetadataNotSaved",
    "XDSReplaceFailed",
    "XDSRegistryDeprecatedDocumentError",
    "UnresolvedReferenceException",
    "XDSMetadataUpdateError",
    "XDSMetadataUpdateOperationError",
    "XDSMetadataVersionError",
    # Of questions and retrievals: no answer to a submission, and none that another try would change.
    "XDSStoredQueryMissingParam",
    "XDSStoredQueryParamNumber",
    "XDSUnknownStoredQuery",
    "XDSTooManyResults",
    "XDSResultNotSinglePatient",
    "XDSDocumentUniqueIdError",
    "XDSUnknownRepositoryId",
    "DMPInventedError",
]
SERVER_SIDE = [
    "XDSRegistryBusy",
    "XDSRepositoryBusy",
    "XDSRegistryNotAvailable",
    "XDSRepositoryError",
    "XDSRegistryError",
    "XDSRegistryOutOfResources",
    "XDSRepositoryOutOfResources",
]


def failure(*codes: str, severity: str = "Error") -> RegistryAnswer:
    return RegistryAnswer("Failure", tuple(RegistryError(code, "ctx", severity=severity) for code in codes))


def refused(outcome: Outcome) -> Refused:
    assert isinstance(outcome, Refused)
    return outcome


@pytest.mark.parametrize("code", BAD_SUBMISSION)
def test_a_bad_submission_is_refused(code: str) -> None:
    found = refused(registry_outcome(failure(code)))
    assert (found.code, found.unknown_patient, found.duplicate) == (code, False, False)


@pytest.mark.parametrize("code", SERVER_SIDE)
def test_the_servers_own_trouble_is_retried(code: str) -> None:
    with pytest.raises(DmpUnavailable) as caught:
        registry_outcome(failure(code))
    assert caught.value.sent
    assert code in str(caught.value)


@pytest.mark.parametrize("code", ["XDSUnknownPatientId", "XDSPatientIdDoesNotMatch"])
def test_an_unknown_patient_is_e006(code: str) -> None:
    assert refused(registry_outcome(failure(code))).unknown_patient


def test_a_duplicate_asks_for_a_question() -> None:
    assert refused(registry_outcome(failure("XDSDuplicateUniqueIdInRegistry"))).duplicate


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (("XDSRegistryError", "XDSUnknownPatientId"), "XDSUnknownPatientId"),
        (("XDSRepositoryError", "XDSRegistryMetadataError"), "XDSRegistryMetadataError"),
        (("XDSRegistryMetadataError", "XDSDuplicateUniqueIdInRegistry"), "XDSDuplicateUniqueIdInRegistry"),
        (("",), "DMP"),
        ((), "DMP"),
    ],
)
def test_the_most_telling_error_decides(codes: tuple[str, ...], expected: str) -> None:
    assert refused(registry_outcome(failure(*codes))).code == expected


def test_warnings_do_not_decide_when_errors_exist() -> None:
    answer = RegistryAnswer(
        "Failure",
        (
            RegistryError("XDSDuplicateUniqueIdInRegistry", severity="Warning"),
            RegistryError("XDSNonIdenticalHash"),
        ),
    )
    assert refused(registry_outcome(answer)).code == "XDSNonIdenticalHash"


def test_a_success_keeps_its_warnings() -> None:
    answer = RegistryAnswer(
        "Success", (RegistryError("XDSExtraMetadataNotSaved", f"slot {INS}", severity="Warning"),)
    )
    assert registry_outcome(answer) == Accepted(("XDSExtraMetadataNotSaved slot [INS]",))
    assert registry_outcome(RegistryAnswer("Success")) == Accepted()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(("Sender",), "bad"),
        Fault(("Client",), "bad"),
        Fault(("Client.Data",), "bad"),
        Fault(("MustUnderstand",), "bad"),
        Fault(("VersionMismatch",), "bad"),
        Fault(("DataEncodingUnknown",), "bad"),
        Fault(("Sender", "ActionNotSupported"), "bad"),
        Fault(("Sender", "InvalidAddressingHeader", "DuplicateHeader"), "bad"),
        Fault(("",), "nothing known"),
        Fault((), "nothing known"),
        Fault(("Receiver", "XDSRegistryMetadataError"), ""),
    ],
)
def test_faults_about_the_request_are_refused(fault: Fault) -> None:
    found = fault_outcome(fault)
    assert found.code
    assert not found.unknown_patient


@pytest.mark.parametrize(
    "fault",
    [
        Fault(("Sender", "FailedAuthentication"), "bad"),
        Fault(("Client.Authentication",), "bad"),
        Fault(("Receiver", "InvalidSecurityToken"), "bad"),
        Fault(("Sender", "InvalidSecurity"), "bad"),
        Fault(("Sender", "UnsupportedSecurityToken"), "bad"),
        Fault(("Sender", "UnsupportedAlgorithm"), "bad"),
        Fault(("Sender", "FailedCheck"), "bad"),
        Fault(("Sender", "SecurityTokenUnavailable"), "bad"),
        Fault(("Sender", "MessageExpired"), "bad"),
        Fault(("Receiver",), "Le VIHF est invalide"),
        Fault(("Sender",), "assertion SAML expirée"),
        Fault(("Server",), "x", "Authentification impossible"),
        Fault(("Receiver",), "", "habilitation absente"),
    ],
)
def test_faults_about_us_ask_for_the_administrator(fault: Fault) -> None:
    with pytest.raises(NotAdmitted) as caught:
        fault_outcome(fault)
    assert caught.value.sent
    assert (fault.reason or fault.detail) in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(("Receiver",), "NullPointerException"),
        Fault(("Server",), ""),
        Fault(("Server.Timeout",), ""),
        Fault(("Receiver", "EndpointUnavailable"), ""),
        Fault(("Sender", "EndpointUnavailable"), ""),
        Fault(("Sender", "DestinationUnreachable"), ""),
        Fault(("Sender", "XDSRegistryBusy"), ""),
    ],
)
def test_faults_of_the_server_are_retried(fault: Fault) -> None:
    with pytest.raises(DmpUnavailable) as caught:
        fault_outcome(fault)
    assert caught.value.sent
    assert not isinstance(caught.value, NotAdmitted)


@pytest.mark.parametrize("status", [411, 413, 414, 415, 422, 431])
def test_http_errors_about_the_message_are_refused(status: int) -> None:
    assert http_outcome(status).code == f"HTTP {status}"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 407, 421, 451, 495, 499])
def test_http_errors_about_us_ask_for_the_administrator(status: int) -> None:
    with pytest.raises(NotAdmitted, match=f"HTTP {status}"):
        http_outcome(status)


@pytest.mark.parametrize("status", [100, 301, 302, 307, 408, 425, 429, 500, 502, 503, 504, 599])
def test_http_errors_of_the_server_are_retried(status: int) -> None:
    with pytest.raises(DmpUnavailable) as caught:
        http_outcome(status)
    assert caught.value.sent
    assert not isinstance(caught.value, NotAdmitted)


def existence(
    ack: str = "AA", query: str = "OK", authorization: str = "VALIDE", patient: str = "active"
) -> Existence:
    return Existence(ack, query, authorization, patient, f"détail {INS}")


def test_an_open_record_is_accepted() -> None:
    assert existence_outcome(existence()) == Accepted()
    assert existence_outcome(existence(authorization="", patient="")) == Accepted()
    assert existence_outcome(existence(query="")) == Accepted()


@pytest.mark.parametrize("word", ["INEXISTANTE", "EXPIRE"])
def test_no_right_to_read_is_no_bar_to_feeding(word: str) -> None:
    assert existence_outcome(existence(authorization=word)) == Accepted((f"autorisation {word}",))


@pytest.mark.parametrize(
    "answer",
    [
        existence(query="NF", authorization="", patient=""),
        existence(ack="AE", query="NF"),
        existence(patient="terminated"),
        existence(authorization="INTERDIT"),
    ],
)
def test_no_record_for_us_is_e006(answer: Existence) -> None:
    assert refused(existence_outcome(answer)).unknown_patient


@pytest.mark.parametrize(
    "answer", [existence(query="QE"), existence(query="AE"), existence(ack="AE", query="")]
)
def test_a_refused_question_is_not_an_unknown_patient(answer: Existence) -> None:
    found = refused(existence_outcome(answer))
    assert not found.unknown_patient
    assert INS not in found.text


@pytest.mark.parametrize("answer", [existence(ack="AR"), Existence("AA", "", "", "")])
def test_a_rejected_or_empty_answer_is_asked_again(answer: Existence) -> None:
    with pytest.raises(DmpUnavailable):
        existence_outcome(answer)


@pytest.mark.threat("patient data in logs and notices")
@pytest.mark.parametrize(
    "text",
    [
        f"{INS}^^^&1.2.250.1.213.1.4.10&ISO^NH",
        f"id='{INS}'",
        "INS 2 84 07 01 004 990 94 inconnu",
        "1850 72A004990 94".replace(" ", ""),
        "185072B00499094",
        f"{INS[:13]} sans clé",
    ],
)
def test_no_ins_survives(text: str) -> None:
    assert "[INS]" in scrub(text)
    assert "4990" not in scrub(text)


@pytest.mark.threat("patient data in logs and notices")
@given(st.text(max_size=40), st.text(max_size=40))
def test_an_ins_never_survives_between_other_words(before: str, after: str) -> None:
    if before[-1:] not in list("0123456789") and after[:1] not in list("0123456789"):
        assert INS not in scrub(before + INS + after)


@pytest.mark.threat("patient data in logs and notices")
def test_known_values_are_masked_and_the_rest_is_kept() -> None:
    text = "Patient EXEMPLE Claire IPP P000123 inconnu, uniqueId 2.25.111, exemplaire 20260112094500"
    expected = "Patient […] […] IPP […] inconnu, uniqueId 2.25.111, exemplaire 20260112094500"
    assert scrub(text, "P000123", "EXEMPLE", "CLAIRE", "", "x") == expected


@pytest.mark.threat("log and audit injection, flooding")
def test_one_line_of_bounded_length() -> None:
    assert scrub("a\r\nb\x1b[31m\x00\u2028c" + "x" * 1000)[:12] == "a b [31m cxx"
    assert len(scrub("x" * 10000)) == 500
