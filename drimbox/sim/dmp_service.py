"""The simulated DMP without its sockets: one HTTP request in, one answer out, everything recorded.

`DmpService.handle` reads the envelope, judges the VIHF, then the transaction the service and the Action
name, and registers what deserves it. `identify` says which transaction a request is before anything is
judged, so that a misbehaviour may be aimed at it. The clock is given, never read.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import attrs
from cryptography import x509

from drimbox.sim.dmp_patients import PatientRecord, answer_existence
from drimbox.sim.dmp_queries import answer_query
from drimbox.sim.dmp_registry import REPOSITORY_UID, Registry
from drimbox.sim.dmp_rim import LCM, read_submission
from drimbox.sim.dmp_rules import SET_PATIENT
from drimbox.sim.dmp_soap import (
    MTOM_ACTION,
    Envelope,
    RegistryError,
    SoapFault,
    read_request,
    registry_response,
    write_envelope,
    write_fault,
)
from drimbox.sim.dmp_submission import Judge, check_publication, check_update
from drimbox.sim.dmp_trust import Findings, Trust
from drimbox.sim.dmp_vihf import Vihf, check_vihf
from drimbox.sim.mime import write_related
from drimbox.sim.xmltools import text_of

BASE_PATH = "/si-dmp-server/v2/services"
XDSB = "urn:ihe:iti:xds-b:2007"
SOAP_TYPE = "application/soap+xml; charset=UTF-8"
MAX_EXCHANGES = 10_000

#: Transaction, service and answer Action by request Action (interfaces.md 4).
TRANSACTIONS = {
    "urn:hl7-org:v3:PRPA_IN201307UV02": ("TD0.2", "patients", "urn:hl7-org:v3:PRPA_IN201308UV02"),
    MTOM_ACTION: ("TD2.1", "repository", MTOM_ACTION + "Response"),
    "urn:ihe:iti:2007:RegistryStoredQuery": (
        "TD3.1",
        "registry",
        "urn:ihe:iti:2007:RegistryStoredQueryResponse",
    ),
    "urn:ihe:iti:2007:RetrieveDocumentSet": (
        "TD3.2",
        "repository",
        "urn:ihe:iti:2007:RetrieveDocumentSetResponse",
    ),
    "urn:ihe:iti:2010:UpdateDocumentSet": (
        "TD3.3c",
        "registry",
        "urn:ihe:iti:2010:UpdateDocumentSetResponse",
    ),
}


@attrs.frozen
class Request:
    """One HTTP POST as the DMP sees it."""

    path: str
    content_type: str
    body: bytes = attrs.field(repr=False)
    #: Certificate of the TLS client.
    client: x509.Certificate | None


@attrs.frozen
class Answer:
    """One HTTP answer."""

    status: int
    content_type: str
    body: bytes = attrs.field(repr=False)


@attrs.frozen
class Exchange:
    """One request and what became of it; no patient data."""

    at: datetime
    transaction: str
    #: MessageID, empty when unreadable.
    message_id: str
    #: Subject DN of the TLS client certificate.
    client: str
    #: "success", "failure" (registry errors), "fault", "http", or the name of a misbehaviour.
    outcome: str
    #: Error codes or the fault's subcode.
    codes: tuple[str, ...] = ()
    #: Texts of errors and warnings.
    details: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@attrs.define
class DmpService:
    """The DMP's judgement and memory."""

    trust: Trust
    registry: Registry = attrs.field(factory=Registry)
    #: By INS; None when every patient has an open DMP.
    patients: Mapping[str, PatientRecord] | None = None
    #: Accept published samples: matters of trust become warnings (`Findings.trust`).
    lenient: bool = False
    freshness: timedelta = timedelta(minutes=5)
    algorithms: frozenset[str] = frozenset({"sha256", "sha1"})
    #: Answer TD2.1 without MTOM, which a client must accept too.
    plain_answers: bool = False
    exchanges: deque[Exchange] = attrs.field(factory=lambda: deque(maxlen=MAX_EXCHANGES))
    _seen: dict[str, None] = attrs.field(factory=dict)

    def identify(self, request: Request) -> str:
        """Return the transaction a request seems to be ("TD2.1"), or "" when it cannot be told."""
        for action, (transaction, _, _) in TRANSACTIONS.items():
            if f">{action}<".encode() in request.body:
                return transaction
        return ""

    def record(self, request: Request, transaction: str, outcome: str, now: datetime) -> None:
        """Note a request that was not carried out because the simulator misbehaved."""
        self.exchanges.append(Exchange(now, transaction, "", self._client(request), outcome))

    def refusal(self, request: Request, code: str, text: str, now: datetime) -> Answer:
        """Answer with the registry error `code`, without looking at the request (misbehaviour)."""
        transaction = self.identify(request)
        try:
            message_id = self._read(request).message_id
        except SoapFault:
            message_id = ""
        action = next((a for t, _, a in TRANSACTIONS.values() if t == transaction), "")
        self.exchanges.append(
            Exchange(now, transaction, message_id, self._client(request), "error", (code,), (text,))
        )
        body = registry_response([RegistryError(code, text)])
        return Answer(200, SOAP_TYPE, write_envelope(action, message_id, body))

    def fault(self, request: Request, subcode: str, now: datetime) -> Answer:
        """Answer with a SOAP fault, without looking at the request (misbehaviour)."""
        subcode = subcode or "soap:Receiver"
        code = "Receiver" if subcode == "soap:Receiver" else "Sender"
        fault = SoapFault(subcode, "simulated fault", code=code)
        self.exchanges.append(
            Exchange(now, self.identify(request), "", self._client(request), "fault", (subcode,))
        )
        return Answer(500, SOAP_TYPE, write_fault(fault, ""))

    def handle(self, request: Request, now: datetime) -> Answer:
        """Carry out one request: judge, register, answer. Never raises for what a peer may send."""
        findings = Findings(lenient=self.lenient)
        message_id, transaction = "", self.identify(request)
        try:
            envelope = self._read(request)
            message_id = envelope.message_id
            findings.warnings += envelope.warnings
            transaction, _, action = self._route(envelope, request.path)
            vihf = self._authenticate(envelope, request, now, findings)
            answer = self._carry_out(transaction, envelope, vihf, now, findings, action)
        except SoapFault as fault:
            self._note(now, request, transaction, message_id, "fault", findings, fault)
            return Answer(fault.status, SOAP_TYPE, write_fault(fault, message_id))
        outcome = "failure" if findings.errors else "success"
        self._note(now, request, transaction, message_id, outcome, findings)
        return answer

    def _read(self, request: Request) -> Envelope:
        return read_request(request.content_type, request.body, request.path, lenient=self.lenient)

    def _route(self, envelope: Envelope, path: str) -> tuple[str, str, str]:
        found = TRANSACTIONS.get(envelope.action)
        if found is None or path != f"{BASE_PATH}/{found[1]}":
            raise SoapFault("wsa:ActionNotSupported", f"{envelope.action} is not served at {path}")
        return found

    def _authenticate(
        self, envelope: Envelope, request: Request, now: datetime, findings: Findings
    ) -> Vihf:
        vihf = check_vihf(
            envelope.assertion,
            now=now,
            trust=self.trust,
            client=request.client,
            findings=findings,
            freshness=self.freshness,
            algorithms=self.algorithms,
        )
        for kind, identifier in (("message", envelope.message_id), ("assertion", vihf.id)):
            if identifier in self._seen:
                raise SoapFault("wsse:InvalidSecurityToken", f"{kind} id used before")
        self._seen[envelope.message_id] = self._seen[vihf.id] = None
        while len(self._seen) > 2 * MAX_EXCHANGES:
            del self._seen[next(iter(self._seen))]
        return vihf

    def _carry_out(
        self,
        transaction: str,
        envelope: Envelope,
        vihf: Vihf,
        now: datetime,
        findings: Findings,
        action: str,
    ) -> Answer:
        carriers: dict[str, Callable[[Envelope, Vihf, datetime, Findings], str]] = {
            "TD0.2": self._existence,
            "TD2.1": self._publish,
            "TD3.1": self._query,
            "TD3.3c": self._update,
        }
        attachments: list[tuple[str, bytes]] = []
        if transaction == "TD3.2":
            body = self._retrieve(envelope, vihf, findings, attachments)
        else:
            body = carriers[transaction](envelope, vihf, now, findings)
        message = write_envelope(action, envelope.message_id, body)
        if attachments or (transaction in ("TD2.1", "TD3.2") and not self.plain_answers):
            content_type, data = write_related(message, attachments, f"uuid:{uuid.uuid4()}")
            return Answer(200, content_type, data)
        return Answer(200, SOAP_TYPE, message)

    def _existence(self, envelope: Envelope, vihf: Vihf, now: datetime, findings: Findings) -> str:
        return answer_existence(envelope.body, vihf, self.patients, now)

    def _known_patient(self, vihf: Vihf, findings: Findings) -> None:
        if self.patients is None:
            return
        record = self.patients.get(vihf.patient.partition("^")[0])
        if record is None or not record.open:
            findings.error("XDSUnknownPatientId", "no open DMP for this patient")

    def _publish(self, envelope: Envelope, vihf: Vihf, now: datetime, findings: Findings) -> str:
        body = envelope.body
        if body.tag != f"{{{XDSB}}}ProvideAndRegisterDocumentSetRequest":
            raise SoapFault("soap:Sender", "ProvideAndRegisterDocumentSetRequest is due")
        if not envelope.mtom:
            raise SoapFault("soap:Sender", "TD2.1 is sent with MTOM/XOP")
        if not vihf.mode.startswith("INDIRECTE"):
            raise SoapFault("wsse:FailedAuthentication", "publication uses indirect authentication")
        documents: dict[str, bytes] = {}
        for element in body.findall(f"{{{XDSB}}}Document"):
            identifier = element.get("id", "")
            if identifier in documents:
                findings.error("XDSRepositoryDuplicateUniqueIdInMessage", f"Document {identifier} twice")
            documents[identifier] = envelope.content_of(element)
        request = body.find(f"{{{LCM}}}SubmitObjectsRequest")
        self._known_patient(vihf, findings)
        submitted = None if request is None else read_submission(request, findings)
        if submitted is None:
            findings.error("XDSMissingDocumentMetadata", "no readable metadata")
            return registry_response(findings.errors)
        judge = Judge(self.registry, self.trust, self.algorithms, now)
        replaced = check_publication(submitted, documents, vihf, judge, findings)
        if not findings.errors:
            self.registry.submit(request, submitted, documents, replaced, vihf.structure, now)
        return registry_response(findings.errors)

    def _update(self, envelope: Envelope, vihf: Vihf, now: datetime, findings: Findings) -> str:
        submitted = read_submission(envelope.body, findings)
        if submitted is None:
            return registry_response(findings.errors)
        changes = check_update(submitted, vihf, self.registry, findings)
        if not findings.errors:
            assert submitted.package.external[SET_PATIENT] == vihf.patient
            self.registry.change_status(submitted, changes, vihf.structure, now)
        return registry_response(findings.errors)

    def _query(self, envelope: Envelope, vihf: Vihf, now: datetime, findings: Findings) -> str:
        return answer_query(envelope.body, vihf, self.registry, findings)

    def _retrieve(
        self, envelope: Envelope, vihf: Vihf, findings: Findings, attachments: list[tuple[str, bytes]]
    ) -> str:
        if envelope.body.tag != f"{{{XDSB}}}RetrieveDocumentSetRequest":
            raise SoapFault("soap:Sender", "RetrieveDocumentSetRequest is due")
        pieces: list[str] = []
        for wanted in envelope.body.findall(f"{{{XDSB}}}DocumentRequest"):
            repository = text_of(wanted.find(f"{{{XDSB}}}RepositoryUniqueId"))
            uid = text_of(wanted.find(f"{{{XDSB}}}DocumentUniqueId"))
            entry = self.registry.by_unique_id(uid)
            if repository != REPOSITORY_UID:
                findings.error("XDSUnknownRepositoryId", f"repository {repository} is not this one")
            elif entry is None or entry.patient != vihf.patient:
                findings.error("XDSDocumentUniqueIdError", f"document {uid} is unknown")
            else:
                content_id = f"document{len(attachments)}@dmp.example"
                attachments.append((content_id, entry.document))
                pieces.append(
                    f"<xdsb:DocumentResponse><xdsb:RepositoryUniqueId>{repository}</xdsb:RepositoryUniqueId>"
                    f"<xdsb:DocumentUniqueId>{entry.unique_id}</xdsb:DocumentUniqueId>"
                    f"<xdsb:mimeType>{entry.mime_type}</xdsb:mimeType><xdsb:Document><xop:Include "
                    f'xmlns:xop="http://www.w3.org/2004/08/xop/include" '
                    # Percent-encoded on purpose: RFC 2392 allows it and real servers do it.
                    f'href="cid:{content_id.replace("@", "%40")}"/></xdsb:Document></xdsb:DocumentResponse>'
                )
        if not pieces and not findings.errors:
            findings.error("XDSRepositoryError", "nothing asked")
        response = registry_response(findings.errors)
        if findings.errors and pieces:
            response = response.replace(
                "urn:oasis:names:tc:ebxml-regrep:ResponseStatusType:Failure",
                "urn:ihe:iti:2007:ResponseStatusType:PartialSuccess",
            )
        return (
            f'<xdsb:RetrieveDocumentSetResponse xmlns:xdsb="{XDSB}">{response}{"".join(pieces)}'
            "</xdsb:RetrieveDocumentSetResponse>"
        )

    @staticmethod
    def _client(request: Request) -> str:
        return "" if request.client is None else request.client.subject.rfc4514_string()

    def _note(
        self,
        now: datetime,
        request: Request,
        transaction: str,
        message_id: str,
        outcome: str,
        findings: Findings,
        fault: SoapFault | None = None,
    ) -> None:
        codes = tuple(dict.fromkeys(error.code for error in findings.errors))
        details = tuple(f"{error.location}: {error.text}" for error in findings.errors)
        if fault is not None:
            codes, details = (fault.subcode,), (fault.reason,)
        self.exchanges.append(
            Exchange(
                at=now,
                transaction=transaction,
                message_id=message_id,
                client=self._client(request),
                outcome=outcome,
                codes=codes,
                details=details,
                warnings=tuple(findings.warnings),
            )
        )
