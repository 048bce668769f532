"""From an answer of the DMP to a decision: the table of interfaces.md 4.9, in one place.

Theory of operation. Four ways out. `Accepted`: the DMP holds the document. `Refused`: it said no and
would say no again; somebody must look. `DmpUnavailable`: try again later, and since the request left,
ask what the DMP holds first. `NotAdmitted`, one of these: it is us it does not want, not the document
(certificate, VIHF, authorisation, address), so the administrator is asked and nothing is given up
meanwhile. In doubt it is never a refusal, because asking is free and a refusal stops the publication
for good.
"""

from __future__ import annotations

import re

from drimbox.ports import Accepted, DmpUnavailable, NotAdmitted, Outcome, Refused
from drimbox.xds.answers import (
    Existence,
    Fault,
    NotUnderstood,
    RegistryAnswer,
    RegistryError,
    Reply,
    read_fault,
    read_registry_answer,
)
from drimbox.xds.ebrim import printable

DUPLICATE = "XDSDuplicateUniqueIdInRegistry"
UNKNOWN_PATIENT = frozenset({"XDSUnknownPatientId", "XDSPatientIdDoesNotMatch"})
#: The server's own trouble: the same request may succeed later.
SERVER_SIDE = frozenset(
    {
        "XDSRegistryBusy",
        "XDSRepositoryBusy",
        "XDSRegistryNotAvailable",
        "XDSRepositoryError",
        "XDSRegistryError",
        "XDSRegistryOutOfResources",
        "XDSRepositoryOutOfResources",
    }
)
#: Code given to refusals that carry none.
NO_CODE = "DMP"
MAX_TEXT = 500

_FAULT_OF_THE_SERVER = frozenset({"Receiver", "Server"})
#: Faults of WS-Addressing that say the server is not there for now.
_NOT_THERE = frozenset({"EndpointUnavailable", "DestinationUnreachable"})
#: HTTP statuses that are about the message sent. Every other 4xx is about who asks, or where: a proxy's
#: answer (the DMP's own is SOAP), such as the 400 of nginx to a client certificate it does not like.
_ABOUT_THE_MESSAGE = frozenset({411, 413, 414, 415, 422, 431})
_LATER = frozenset({408, 425, 429})
#: Subcodes of WS-Security and of WS-Trust: the assertion was judged, and found wanting.
_SECURITY = re.compile(
    r"(?i)failedauthentication|invalidsecurity|unsupportedsecuritytoken|unsupportedalgorithm|failedcheck"
    r"|securitytokenunavailable|messageexpired|vihf|saml|authenti(?:cation|fication)|habilitation"
)
#: A national health identifier, alone or in groups: 13 characters and the 2 of its key.
_INS = re.compile(
    r"(?<![0-9])[1-9](?:[ .]?[0-9]{2}){2}[ .]?[0-9][0-9AB](?:[ .]?[0-9]{3}){2}(?:[ .]?[0-9]{2})?(?![0-9])"
)


def scrub(text: str, *known: str) -> str:
    """Return the DMP's words without patient identifiers, on one line, at most 500 characters.

    INS matricules are masked wherever they stand, `known` values (IPP, names of this patient) too.
    """
    text = " ".join(printable(text).split())
    text = _INS.sub("[INS]", text)
    for value in known:
        if len(value) >= 3:
            # Whole words: a patient called « Ine » must not turn « Machine » into a riddle.
            text = re.sub(rf"(?i)(?<!\w){re.escape(value)}(?!\w)", "[…]", text)
    return text[:MAX_TEXT]


def registry_outcome(answer: RegistryAnswer, *known: str) -> Outcome:
    """Return `Accepted` or `Refused` for the answer to a submission, or raise `DmpUnavailable`.

    PartialSuccess counts as Failure here: the caller asks first whether the registry holds the document
    (ITI-42 registers all or nothing, so the answer alone does not tell which half it means).
    """
    if answer.status == "Success":
        return Accepted(tuple(_words(error, known) for error in answer.errors))
    errors = [error for error in answer.errors if error.severity != "Warning"] or list(answer.errors)
    for error in errors:
        if error.code == DUPLICATE:
            return Refused(error.code, _words(error, known), duplicate=True)
    for error in errors:
        if error.code in UNKNOWN_PATIENT:
            return Refused(error.code, _words(error, known), unknown_patient=True)
    # A bad submission stays bad whatever else the server complains about.
    for error in errors:
        if error.code not in SERVER_SIDE:
            return Refused(error.code or NO_CODE, _words(error, known))
    if errors:
        raise DmpUnavailable(f"le DMP a répondu {_words(errors[0], known)}", sent=True)
    return Refused(NO_CODE, f"{answer.status} sans erreur détaillée")


def fault_outcome(fault: Fault, *known: str) -> Refused:
    """Return `Refused` for a fault about our request, or raise `DmpUnavailable` for the server's own.

    An authentication or VIHF fault is about us (`NotAdmitted`) whatever side the server blames: CXF
    reports every exception as Receiver.
    """
    text = scrub(" ".join(part for part in (fault.reason, fault.detail) if part), *known)
    code = scrub(next((name for name in reversed(fault.codes) if name), NO_CODE))
    registry = [name for name in fault.codes if name.startswith("XDS")]
    if registry:
        outcome = registry_outcome(
            RegistryAnswer("Failure", tuple(RegistryError(name, text) for name in registry))
        )
        assert isinstance(outcome, Refused)
        return outcome
    if _SECURITY.search(" ".join((*fault.codes, fault.reason, fault.detail))):
        raise NotAdmitted(f"le DMP n'admet pas notre demande : {code} {text}".rstrip())
    # SOAP 1.1 adds to its codes behind a dot: Server.Timeout.
    side = fault.codes[0].partition(".")[0] if fault.codes else ""
    if side in _FAULT_OF_THE_SERVER or not _NOT_THERE.isdisjoint(fault.codes):
        raise DmpUnavailable(f"le DMP signale une erreur de son côté : {code} {text}".rstrip(), sent=True)
    return Refused(code, text)


def http_outcome(status: int) -> Refused:
    """Return `Refused` for an HTTP status without SOAP that is about the message, or raise.

    `DmpUnavailable` for 5xx, 408, 425, 429, and for 3xx, which is never followed: a redirection is a
    maintenance page or a mistaken address, and the document was not taken. `NotAdmitted` for other 4xx.
    """
    text = f"le DMP a répondu HTTP {status}"
    if status in _ABOUT_THE_MESSAGE:
        return Refused(f"HTTP {status}", text)
    if 400 <= status < 500 and status not in _LATER:
        raise NotAdmitted(text)
    raise DmpUnavailable(text, sent=True)


def existence_outcome(existence: Existence, *known: str) -> Outcome:
    """Return `Accepted` when the record exists and is open, else `Refused` (E006), or raise.

    INEXISTANTE and EXPIRE speak of the right to read; feeding the record in indirect mode needs none, so
    they are warnings. INTERDIT is the patient's no. AR (reject) is the server's own trouble (HL7 v3).
    """
    detail = scrub(existence.detail, *known)
    if existence.query_response == "NF":
        return Refused("NF", "aucun DMP pour ce patient", unknown_patient=True)
    if existence.acknowledgement == "AR":
        raise DmpUnavailable(f"le DMP a rejeté le test d'existence {detail}".rstrip(), sent=True)
    if existence.acknowledgement == "AE" or existence.query_response in ("AE", "QE"):
        code = existence.query_response if existence.query_response in ("AE", "QE") else "AE"
        return Refused(code, detail or "le DMP a refusé le test d'existence")
    if not (existence.query_response or existence.authorization or existence.patient_status):
        raise DmpUnavailable("réponse au test d'existence sans contenu", sent=True)
    if existence.patient_status not in ("", "active"):
        return Refused("FERME", "le DMP de ce patient est fermé", unknown_patient=True)
    if existence.authorization == "INTERDIT":
        return Refused("INTERDIT", "le patient a interdit l'accès à son DMP", unknown_patient=True)
    if existence.authorization in ("", "VALIDE"):
        return Accepted()
    return Accepted((scrub(f"autorisation {existence.authorization}"),))


def reply_or_refusal(reply: Reply, *known: str) -> RegistryAnswer | Refused:
    """Read a registry's answer, or return the refusal its fault means; raises `DmpUnavailable`."""
    fault = read_fault(reply.content)
    if fault is not None:
        return fault_outcome(fault, *known)
    try:
        return read_registry_answer(reply.content)
    except NotUnderstood as error:
        raise DmpUnavailable(str(error), sent=True) from error


def _words(error: RegistryError, known: tuple[str, ...]) -> str:
    return scrub(f"{error.code} {error.context}".strip(), *known)
