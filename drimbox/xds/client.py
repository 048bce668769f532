"""The DMP as the Source uses it: `drimbox.ports.Record` over HTTPS (TD0.2, TD2.1, TD3.1, TD3.3c).

Theory of operation. Everything a submission sends is a function of the submission; this adapter adds what
is new at each attempt (message id, VIHF), sends it with the structure's own certificate, and hands the
answer to `outcomes`. Whether a request is a question, which changes nothing, is said here (`_ask`).
Making a request costs about 5 ms, so it stays on the reactor thread; an answer large enough to be long to
parse goes through the injected `run`, and so does the making of a TLS context.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import CancelledError
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import Certificate, Config, Structure
from drimbox.keypairs import stamp_of
from drimbox.model import Report
from drimbox.ports import (
    Accepted,
    Clock,
    DmpUnavailable,
    Doubtful,
    Outcome,
    Refused,
    RegistryEntry,
    Removal,
    Submission,
)
from drimbox.xds import codes, queries, soap
from drimbox.xds.answers import (
    NotUnderstood,
    RegistryAnswer,
    Reply,
    read_entries,
    read_existence,
    read_fault,
    read_reply,
)
from drimbox.xds.metadata import removal_metadata, submission_metadata
from drimbox.xds.outcomes import (
    existence_outcome,
    fault_outcome,
    http_outcome,
    registry_outcome,
    reply_or_refusal,
)
from drimbox.xds.sender import Sender, SigningPairs
from drimbox.xds.signature import signature_document
from drimbox.xds.transport import Connections, Exchange, HttpAnswer, TlsPolicy, Way
from drimbox.xds.vihf import vihf

_log = Logger()
T = TypeVar("T")
#: Exchanges, and classes of HTTP status, as labels.
_TRANSACTIONS = {
    soap.PATIENT_TEST: "TD0.2",
    soap.PUBLISH: "TD2.1",
    soap.QUERY: "TD3.1",
    soap.UPDATE: "TD3.3c",
}
_RESULTS = {2: "answered", 4: "4xx", 5: "5xx"}
#: Answers larger than this are read off the reactor thread.
LARGE_ANSWER = 128 * 1024


class Runner(Protocol):
    """Runs a function elsewhere than on the reactor thread and returns its result."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


class DmpClient:
    """Implements `drimbox.ports.Record`.

    `tls_policy` builds the TLS of a client from the DMP's roots and a structure's authentication pair; it
    is asked again whenever one of these files changed, so that renewed certificates are used at once.
    `run` calls a function elsewhere than on the reactor thread; `way` is how the DMP is reached, straight
    when not given.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        *,
        clock: Clock,
        tls_policy: TlsPolicy,
        run: Runner = deferToThread,
        new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
        way: Way | None = None,
    ) -> None:
        self._appliance = config.drimbox
        self._settings = config.dmp
        self._reactor = reactor
        self._clock = clock
        self._tls_policy = tls_policy
        self._run = run
        self._new_uuid = new_uuid
        self._way = way
        self._pairs = SigningPairs()
        self._connections: dict[Certificate, tuple[tuple[int, ...], Connections]] = {}

    async def patient_exists(self, structure: Structure, report: Report) -> Outcome:
        """TD0.2: `Accepted` when the patient's DMP exists and is open, else `Refused` (E006).

        Raises `DmpUnavailable`, and the `FeedError`s of a request that cannot be made.
        """

        def body() -> bytes:
            return queries.existence_test(
                self._sender(structure),
                report.patient,
                message=str(self._new_uuid()),
                query=str(self._new_uuid()),
                now=self._clock.now(),
            )

        known = _known(report)
        reply = await self._ask(structure, report, "patients", soap.PATIENT_TEST, body)
        if isinstance(reply, Refused):
            return reply
        fault = read_fault(reply.content)
        if fault is not None:
            return fault_outcome(fault, *known)
        try:
            return existence_outcome(read_existence(reply.content), *known)
        except NotUnderstood as error:
            raise DmpUnavailable(str(error), sent=True) from error

    def metadata(self, structure: Structure, submission: Submission) -> bytes:
        """Return the SubmitObjectsRequest this submission sends, for the archive (DB.SO.22).

        A replacement adds its RPLC association, whose target is only known when it is sent. Raises the
        `FeedError`s of `submission_metadata` and of the signature pair.
        """
        sender = self._sender(structure)
        return submission_metadata(sender, submission, self._signature(sender, submission))

    async def publish(self, structure: Structure, submission: Submission, replaces: str | None) -> Outcome:
        """TD2.1; `replaces` is the entryUUID of the KOS it takes the place of (RPLC).

        Raises `DmpUnavailable`, and the `FeedError`s of a request that cannot be made. A partial success
        is `Doubtful`: ITI-42 registers all or nothing, so it may mean either.
        """
        sender = self._sender(structure)

        def make() -> tuple[soap.Header, soap.HttpMessage]:
            signature = self._signature(sender, submission)
            metadata = submission_metadata(sender, submission, signature, replaces)
            header = self._header(
                sender, submission.report, "repository", soap.PUBLISH, submission.secret_connection
            )
            return header, soap.publish_request(header, metadata, submission.kos, signature)

        # Two signatures, and a digest of every byte: not on the reactor thread.
        header, message = await self._run(make)
        reply = await self._exchange(sender, header, message)
        if isinstance(reply, Refused):
            return reply
        known = _known(submission.report)
        answer = reply_or_refusal(reply, *known)
        if isinstance(answer, Refused):
            return answer
        if answer.status == "PartialSuccess":
            return _doubtful(answer, known)
        return registry_outcome(answer, *known)

    async def remove(self, structure: Structure, removal: Removal, entry_uuid: str) -> Outcome:
        """TD3.3c: withdraw the manifest that the registry knows as `entry_uuid`.

        Raises `DmpUnavailable`, and the `FeedError`s of a request that cannot be made. A partial success
        counts as no answer: what the registry holds now has to be asked.
        """
        sender = await self._signing(structure)
        body = removal_metadata(sender, removal, entry_uuid)
        header = self._header(sender, removal.report, "registry", soap.UPDATE)
        reply = await self._exchange(sender, header, soap.plain_request(header, body))
        known = _known(removal.report)
        answer = reply if isinstance(reply, Refused) else reply_or_refusal(reply, *known)
        if isinstance(answer, Refused):
            return answer
        if answer.status == "PartialSuccess":
            raise DmpUnavailable("le DMP n'a répondu qu'en partie au retrait", sent=True)
        return registry_outcome(answer, *known)

    async def find_entry(
        self, structure: Structure, report: Report, unique_id: str
    ) -> RegistryEntry | None:
        """TD3.1 GetDocuments by uniqueId: what the DMP holds under it, or None.

        The entry carries hash, size and status, so that the caller can tell whether it is ours. Raises
        `DmpUnavailable` whenever the DMP gives no usable answer, a refusal included: not knowing is
        never the same as "it holds nothing".
        """
        reply = await self._ask(
            structure, report, "registry", soap.QUERY, lambda: queries.get_documents(unique_id)
        )
        answer = reply if isinstance(reply, Refused) else reply_or_refusal(reply, *_known(report))
        if isinstance(reply, Refused) or isinstance(answer, Refused):
            assert isinstance(answer, Refused)
            raise DmpUnavailable(f"le DMP refuse la recherche : {answer.code} {answer.text}", sent=True)
        if answer.status == "Failure":
            outcome = registry_outcome(answer, *_known(report))
            assert isinstance(outcome, Refused)
            raise DmpUnavailable(f"le DMP refuse la recherche : {outcome.text}", sent=True)
        found = [entry for entry in read_entries(reply.content) if entry.unique_id == unique_id]
        approved = [entry for entry in found if entry.status == codes.APPROVED]
        if not found and answer.status != "Success":
            raise DmpUnavailable("le DMP n'a répondu qu'en partie à la recherche", sent=True)
        return next(iter(approved or found), None)

    async def close(self) -> None:
        """Close the connections kept for the next question."""
        for _, connections in self._connections.values():
            await connections.close()

    # --- one attempt ------------------------------------------------------------------------------

    def _sender(self, structure: Structure) -> Sender:
        return Sender(self._appliance, self._settings, structure)

    async def _signing(self, structure: Structure) -> Sender:
        """Return the sender, its signature pair at hand: a PKCS#12 file takes long to open."""
        if not self._pairs.fresh(structure.signature):
            await self._run(lambda: self._pairs.get(structure.signature))
        return self._sender(structure)

    def _signature(self, sender: Sender, submission: Submission) -> bytes:
        return signature_document(
            signature_uid=submission.signature_uid,
            submission_uid=submission.submission_uid,
            documents=[(submission.sop_instance_uid, submission.kos)],
            signing_time=submission.submission_time,
            pair=self._pairs.get(sender.structure.signature),
            digest=self._settings.digest,
            xades=self._settings.xades_version,
        )

    def _header(
        self, sender: Sender, report: Report, service: str, action: str, secret: bool = False
    ) -> soap.Header:
        assertion = vihf(
            sender,
            report,
            secret_connection=secret,
            assertion_id=f"_{self._new_uuid()}",
            instant=self._clock.now(),
            pair=self._pairs.get(sender.structure.signature),
        )
        url = f"{self._settings.base_url.rstrip('/')}/{self._settings.path.strip('/')}/{service}"
        return soap.Header(url, action, f"urn:uuid:{self._new_uuid()}", assertion)

    async def _ask(
        self, structure: Structure, report: Report, service: str, action: str, body: Callable[[], bytes]
    ) -> Reply | Refused:
        """Put a question; `body` makes it, with identifiers of its own each time it is put."""
        sender = await self._signing(structure)
        header = self._header(sender, report, service, action)
        exchange = Exchange(await self._reached(sender.structure.authentication), question=True)
        http = await self._post(exchange, header, soap.plain_request(header, body()))
        return await self._reply(http, header)

    async def _exchange(
        self, sender: Sender, header: soap.Header, message: soap.HttpMessage
    ) -> Reply | Refused:
        exchange = Exchange(await self._reached(sender.structure.authentication))
        return await self._reply(await self._post(exchange, header, message), header)

    async def _post(self, exchange: Exchange, header: soap.Header, message: soap.HttpMessage) -> HttpAnswer:
        settings = self._settings
        posting = exchange.post(
            header.to, message, timeout=settings.timeout, max_bytes=settings.max_response_bytes
        )
        return await self._measured(header.action, posting)

    async def _reply(self, http: HttpAnswer, header: soap.Header) -> Reply | Refused:
        """Return what an answer says to the request of this header. Raises `DmpUnavailable`."""
        if http.status < 200 or 300 <= http.status < 400:
            return http_outcome(http.status)
        try:
            reply = await self._read(http)
        except NotUnderstood as error:
            if http.status >= 400:
                return http_outcome(http.status)
            raise DmpUnavailable(str(error), sent=True) from error
        # With a status of error, only a fault or a failure is believed; a success would contradict it.
        failure = read_fault(reply.content) is not None or reply.content.get("status", "").endswith(
            ":Failure"
        )
        if http.status >= 400 and not failure:
            return http_outcome(http.status)
        if reply.relates_to not in (None, header.message_id):
            raise DmpUnavailable("réponse à une autre demande", sent=True)
        return reply

    async def _measured(self, action: str, posting: Awaitable[HttpAnswer]) -> HttpAnswer:
        """Count an exchange and its time, whatever becomes of it."""
        transaction, result = _TRANSACTIONS[action], "unavailable"
        started = self._reactor.seconds()
        try:
            http = await posting
            result = _RESULTS.get(http.status // 100, "odd")
            return http
        finally:
            metrics.DMP_EXCHANGES.labels(transaction, result).inc()
            metrics.DMP_SECONDS.labels(transaction).observe(self._reactor.seconds() - started)

    async def _reached(self, pair: Certificate) -> Connections:
        """Return the connections of a structure, made again when one of its files changed.

        OpenSSL checks a private key for tens of milliseconds, so its TLS is made elsewhere, and kept.
        """
        settings = self._settings
        try:
            stamp = stamp_of(settings.roots, *pair.files)
            held = self._connections.get(pair)
            if held is None or held[0] != stamp:
                policy = await self._run(lambda: self._tls_policy(settings.roots, pair))
                if held is not None:
                    held[1].close()
                made = Connections(
                    self._reactor,
                    policy,
                    connect_timeout=settings.connect_timeout,
                    keep=settings.keep_alive,
                    way=self._way,
                )
                held = self._connections[pair] = (stamp, made)
        except Exception as error:
            if isinstance(error, CancelledError):
                raise
            # A certificate that cannot be read today may be mended without a restart: the queue waits.
            _log.failure("TLS towards the DMP cannot be set up")
            raise DmpUnavailable("certificat ou racines TLS inutilisables", sent=False) from None
        return held[1]

    async def _read(self, http: HttpAnswer) -> Reply:
        def read() -> Reply:
            return read_reply(http.content_type, http.body, max_bytes=self._settings.max_response_bytes)

        if len(http.body) < LARGE_ANSWER:
            return read()
        return await self._run(read)


def _doubtful(answer: RegistryAnswer, known: tuple[str, ...]) -> Doubtful:
    """Return what a partial success means in either case."""
    held = registry_outcome(RegistryAnswer("Success", answer.errors), *known)
    assert isinstance(held, Accepted)
    try:
        return Doubtful(held, registry_outcome(answer, *known))
    except DmpUnavailable as error:
        return Doubtful(held, error)


def _known(report: Report) -> tuple[str, ...]:
    """Return what the DMP's words must not carry into a notice about this patient."""
    patient = report.patient
    values = (patient.ins, report.ipp.value if report.ipp else "", patient.family, patient.given)
    return tuple(value for value in (*values, patient.used_family, patient.used_given) if value)
