"""The DMP client against a scripted server over real mutual TLS: every outcome of interfaces.md 4.9."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor, ssl
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, maybeDeferred
from twisted.internet.interfaces import IHostnameResolver
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from drimbox.config import Certificate, Structure
from drimbox.ports import Accepted, DmpUnavailable, Doubtful, NotAdmitted, Record, Refused
from drimbox.xds import codes, soap
from drimbox.xds.client import DmpClient
from drimbox.xds.ebrim import RIM
from drimbox.xds.mime import read_related
from drimbox.xml import safe_parse
from tests.xds.builders import INS, KOS_UID, REMOVAL, REPORT, SUBMISSION, make_config
from tests.xds.conftest import Pki
from tests.xds.ebrim_judge import judge_publication
from tests.xds.judges import need_xmlsec1, xmlsec1
from tests.xds.scripted import (
    CUT,
    HANG,
    Script,
    ScriptedDmp,
    fault,
    http,
    message_id,
    mtom,
    registry,
    soap_body,
)
from tests.xds.test_signature import XMLSEC_OPTIONS

SUCCESS = soap_body(registry("Success"))
OURS = hashlib.sha1(SUBMISSION.kos).hexdigest()


@implementer(IPolicyForHTTPS)
class Policy:
    """A small client policy: our roots, our pair, the name checked."""

    def __init__(self, roots: Path, pair: Certificate | None, **options: Any) -> None:
        self._trust = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(roots.read_bytes())])
        self._own = None
        self._options = options
        if pair is not None:
            self._own = ssl.PrivateCertificate.loadPEM(
                pair.key.read_bytes() + pair.certificate.read_bytes()
            )

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        return ssl.optionsForClientTLS(
            hostname.decode(), self._trust, self._own, extraCertificateOptions=self._options
        )


class FixedClock:
    """An instant that never moves."""

    def now(self) -> datetime:
        return datetime(2026, 1, 12, 9, 50, tzinfo=UTC)


Client = Callable[..., DmpClient]


@pytest.fixture
def client(pki: Pki, structure: Structure) -> Client:
    """Return a function that makes a client towards a base URL."""

    def make(base_url: str, *, roots: Path | None = None, **settings: Any) -> DmpClient:
        config = make_config(base_url, roots or pki.roots, structure, **{"timeout": 5.0, **settings})
        return DmpClient(config, reactor, clock=FixedClock(), tls_policy=Policy)

    return make


@contextlib.asynccontextmanager
async def dmp(
    pki: Pki, script: Script | bytes | str, **options: Any
) -> AsyncIterator[tuple[ScriptedDmp, str]]:
    """Run a scripted DMP that asks for a client certificate."""
    play = script if callable(script) else lambda request: script
    server = ScriptedDmp(play, cut_early=options.pop("cut_early", False))
    url = server.listen(
        options.pop("certificate", pki.server), options.pop("client_roots", pki.roots), **options
    )
    try:
        yield server, url
    finally:
        await maybeDeferred(server.close)


async def publish(client: DmpClient, structure: Structure, replaces: str | None = None) -> Any:
    return await client.publish(structure, SUBMISSION, replaces)


async def unavailable(work: Any) -> DmpUnavailable:
    with pytest.raises(DmpUnavailable) as caught:
        await work
    assert INS not in str(caught.value)
    return caught.value


# --- what is sent ---------------------------------------------------------------------------------


@pytest.mark.peer("xmlsec1")
@pytest.mark.requirement("DB.CS.159", "DB.SO.22")
@pytest.mark.parametrize("digest", ["sha256", "sha1"])
@pytest_twisted.ensureDeferred
async def test_a_publication_is_complete_and_signed(
    pki: Pki, structure: Structure, client: Client, tmp_path: Path, digest: str
) -> None:
    need_xmlsec1()
    async with dmp(pki, lambda request: mtom(soap_body(registry("Success"), message_id(request)))) as (
        server,
        url,
    ):
        record: Record = client(url, digest=digest)
        assert await record.publish(structure, SUBMISSION, None) == Accepted()
    (request,) = server.requests
    assert server.peers == ["CN=org-auth,OU=1999999999,O=CABINET Y,ST=Paris (75),C=FR"]
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /si-dmp-server/v2/services/repository HTTP/1.1\r\n")
    content_type = re.search(rb"(?i)\r\ncontent-type: ([^\r]+)", head)
    assert content_type
    related = read_related(content_type[1].decode(), body)
    assert [part.content_id for part in related.parts] == ["0.1", "0.2", "0.3"]
    assert b"\r\nConnection: close\r\n" in head + b"\r\n", "an attempt is a connection of its own"
    envelope = safe_parse(related.root.content)
    ns = {"wsa": "http://www.w3.org/2005/08/addressing", "xdsb": "urn:ihe:iti:xds-b:2007"}
    assert envelope.findtext("*/wsa:To", namespaces=ns) == f"{url}/si-dmp-server/v2/services/repository"
    action = "urn:ihe:iti:2007:ProvideAndRegisterDocumentSet-b"
    assert envelope.findtext("*/wsa:Action", namespaces=ns) == action
    mandatory = envelope.find("*/wsa:Action", ns).get(f"{{{soap.SOAP}}}mustUnderstand")
    assert mandatory == "true"
    parts = {d.get("id"): d[0].get("href") for d in envelope.iterfind(".//xdsb:Document", ns)}
    kos, signature = related.part(parts["DocumentKOS"]), related.part(parts["Signature01"])
    assert kos is not None
    assert signature is not None
    assert kos.content == SUBMISSION.kos
    submitted = client(url, digest=digest).metadata(structure, SUBMISSION)
    assert submitted in related.root.content
    documents = {"DocumentKOS": kos.content, "Signature01": signature.content}
    assert judge_publication(submitted, documents) == []
    named = base64.b64encode(hashlib.new(digest, kos.content).digest())
    assert b"<DigestValue>" + named + b"</DigestValue>" in signature.content
    good, words = xmlsec1(signature.content, tmp_path, pki.roots, *XMLSEC_OPTIONS)
    assert good, words
    assertion = ("--id-attr:ID", "urn:oasis:names:tc:SAML:2.0:assertion:Assertion")
    good, words = xmlsec1(related.root.content, tmp_path, pki.roots, *assertion)
    assert good, words


@pytest.mark.requirement("DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_only_vihf_and_message_id_are_new_at_each_attempt(
    pki: Pki, structure: Structure, client: Client
) -> None:
    async with dmp(pki, http(SUCCESS)) as (server, url):
        await publish(client(url), structure, "urn:uuid:old")
        await publish(client(url), structure, "urn:uuid:old")
    first, second = server.requests
    assert message_id(first) != message_id(second)

    def stable(request: bytes) -> bytes:
        request = re.sub(rb"(?s)<saml2:Assertion.*</saml2:Assertion>", b"", request)
        return re.sub(rb"DRIMbox_[0-9a-f]{40}|<MessageID[^>]*>[^<]+<|Content-Length: \d+", b"", request)

    assert stable(first) == stable(second)
    assert b'associationType="urn:ihe:iti:2007:AssociationType:RPLC"' in first
    ids = re.findall(rb'<saml2:Assertion[^>]* ID="([^"]+)"', first + second)
    assert len(set(ids)) == 2


@pytest_twisted.ensureDeferred
async def test_a_secret_connection_is_told(pki: Pki, structure: Structure, client: Client) -> None:
    async with dmp(pki, http(SUCCESS)) as (server, url):
        await client(url).publish(structure, attrs.evolve(SUBMISSION, secret_connection=True), None)
        await publish(client(url), structure)
    assert [b"CONNEXION_SECRETE" in request for request in server.requests] == [True, False]


# --- answers to a publication ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        mtom(SUCCESS),
        http(SUCCESS),
        http(SUCCESS, content_type="text/xml"),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\n\r\n" + SUCCESS,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        % (len(SUCCESS), SUCCESS),
        b"HTTP/1.1 100 Continue\r\n\r\n" + http(SUCCESS),
    ],
    ids=["mtom", "plain", "text/xml", "until close", "chunked", "after a 100"],
)
@pytest_twisted.ensureDeferred
async def test_success_in_all_its_forms(
    pki: Pki, structure: Structure, client: Client, answer: bytes
) -> None:
    async with dmp(pki, answer) as (_, url):
        assert await publish(client(url), structure) == Accepted()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (registry("Failure", "XDSRegistryMetadataError"), ("XDSRegistryMetadataError", False, False)),
        (registry("Failure", "XDSNonIdenticalHash"), ("XDSNonIdenticalHash", False, False)),
        (registry("Failure", "XDSReplaceFailed"), ("XDSReplaceFailed", False, False)),
        (registry("Failure", "XDSUnknownPatientId"), ("XDSUnknownPatientId", True, False)),
        (registry("Failure", "XDSPatientIdDoesNotMatch"), ("XDSPatientIdDoesNotMatch", True, False)),
        (
            registry("Failure", "XDSDuplicateUniqueIdInRegistry"),
            ("XDSDuplicateUniqueIdInRegistry", False, True),
        ),
        (fault("Sender", "corps inattendu", "x:BadBody"), ("BadBody", False, False)),
        (fault("MustUnderstand", "en-tête inconnu"), ("MustUnderstand", False, False)),
    ],
)
@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
@pytest_twisted.ensureDeferred
async def test_refusals(
    pki: Pki,
    structure: Structure,
    client: Client,
    content: str,
    expected: tuple[str, bool, bool],
    status: str,
) -> None:
    async with dmp(pki, http(soap_body(content), status)) as (server, url):
        outcome = await publish(client(url), structure)
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.unknown_patient, outcome.duplicate) == expected
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        http(soap_body(registry("Failure", "XDSRegistryBusy"))),
        http(soap_body(registry("Failure", "XDSRepositoryError"))),
        http(soap_body(fault("Receiver", "NullPointerException")), "500 Internal Server Error"),
        http(b"<html>down</html>", "503 Service Unavailable", "text/html"),
        http(SUCCESS, "500 Internal Server Error"),
        http(b"", "302 Found", Location="https://elsewhere.invalid/"),
        http(b"", "429 Too Many Requests"),
        http(b"<html>maintenance</html>", "200 OK", "text/html"),
        http(b"\x00\xff garbage"),
        http(b""),
        http(soap_body(registry("Perhaps"))),
        http(soap_body("<x/>")),
        http(soap_body(registry("Success"), relates="urn:uuid:another")),
        b"not HTTP at all\r\n\r\n",
        mtom(SUCCESS)[:-14],
        http(SUCCESS)[:-20],
        CUT,
        HANG,
    ],
    ids=lambda value: value if isinstance(value, str) else value[:30].decode("latin-1") + str(len(value)),
)
@pytest_twisted.ensureDeferred
async def test_no_usable_answer_after_sending(
    pki: Pki, structure: Structure, client: Client, answer: bytes | str
) -> None:
    async with dmp(pki, answer) as (server, url):
        timeout = 0.3 if answer == HANG else 5.0
        error = await unavailable(publish(client(url, timeout=timeout), structure))
    assert error.sent
    assert len(server.requests) == 1, "one attempt is one request, redirections are not followed"


@pytest.mark.parametrize("status", ["413 Content Too Large", "415 Unsupported Media Type"])
@pytest_twisted.ensureDeferred
async def test_http_refusals(pki: Pki, structure: Structure, client: Client, status: str) -> None:
    async with dmp(pki, http(b"<html>no</html>", status, "text/html")) as (_, url):
        outcome = await publish(client(url), structure)
    assert isinstance(outcome, Refused)
    assert outcome.code == f"HTTP {status[:3]}"


#: It is us that the DMP, or what stands before it, does not want.
NOT_ADMITTED = [
    http(b"<html>no</html>", "400 Bad Request", "text/html"),
    http(b"<html>no</html>", "403 Forbidden", "text/html"),
    http(b"<html>no</html>", "404 Not Found", "text/html"),
    http(soap_body(fault("Sender", "VIHF invalide", "wsse:FailedAuthentication"))),
    http(soap_body(fault("Sender", "VIHF invalide", "wsse:FailedAuthentication")), "400 Bad Request"),
    mtom(soap_body(fault("Receiver", "VIHF : certificat non reconnu"))),
]


@pytest.mark.requirement("DB.SO.21")
@pytest.mark.parametrize("answer", NOT_ADMITTED)
@pytest_twisted.ensureDeferred
async def test_being_turned_away_is_never_a_refusal_of_the_document(
    pki: Pki, structure: Structure, client: Client, answer: bytes
) -> None:
    async with dmp(pki, answer) as (server, url):
        for work in (
            publish(client(url), structure),
            client(url).find_entry(structure, REPORT, KOS_UID),
            client(url).patient_exists(structure, REPORT),
            client(url).remove(structure, REMOVAL, "urn:uuid:e1"),
        ):
            error = await unavailable(work)
            assert isinstance(error, NotAdmitted)
    assert len(server.requests) == 4


@pytest.mark.threat("Content-Length and body bombs")
@pytest.mark.parametrize("declared", [True, False])
@pytest_twisted.ensureDeferred
async def test_an_oversize_answer_is_cut(
    pki: Pki, structure: Structure, client: Client, declared: bool
) -> None:
    flood = http(b"x" * 300_000)
    if not declared:
        flood = flood.replace(b"Content-Length: 300000\r\n", b"")
    async with dmp(pki, flood) as (_, url):
        error = await unavailable(publish(client(url, max_response_bytes=100_000), structure))
    assert error.sent
    assert "volumineuse" in str(error)


@pytest_twisted.ensureDeferred
async def test_signatures_and_large_answers_are_off_the_reactor(pki: Pki, structure: Structure) -> None:
    ran: list[int] = []

    async def run(work: Any) -> Any:
        ran.append(1)
        return work()

    padded = soap_body(registry("Success") + "<!--" + "x" * 200_000 + "-->")
    async with dmp(pki, http(padded)) as (_, url):
        config = make_config(url, pki.roots, structure, timeout=5.0)
        client = DmpClient(config, reactor, clock=FixedClock(), tls_policy=Policy, run=run)  # type: ignore[arg-type]
        assert await publish(client, structure) == Accepted()
        # The submission with its signatures, the TLS context, made once, and the answer.
        assert len(ran) == 3
        assert await publish(client, structure) == Accepted()
        assert len(ran) == 5


@pytest.mark.threat("patient data in logs and notices")
@pytest_twisted.ensureDeferred
async def test_the_words_of_the_dmp_lose_the_patient(
    pki: Pki, structure: Structure, client: Client
) -> None:
    words = f"patient {INS} (EXEMPLE Claire, P000123) refusé"
    async with dmp(pki, http(soap_body(registry("Failure", "XDSReplaceFailed", context=words)))) as (
        _,
        url,
    ):
        outcome = await publish(client(url), structure)
    assert isinstance(outcome, Refused)
    assert outcome.text == "XDSReplaceFailed patient [INS] ([…] […], […]) refusé"


# --- partial success ------------------------------------------------------------------------------


def entry(
    unique_id: str = KOS_UID, digest: str = OURS, status: str = codes.APPROVED, uid: str = "urn:uuid:e1"
) -> str:
    return (
        f'<ExtrinsicObject xmlns="{RIM}" id="{uid}" status="{status}">'
        f'<Slot name="hash"><ValueList><Value>{digest.upper()}</Value></ValueList></Slot>'
        f'<Slot name="size"><ValueList><Value>{len(SUBMISSION.kos)}</Value></ValueList></Slot>'
        f'<ExternalIdentifier identificationScheme="{codes.ENTRY_UNIQUE_ID}" value="{unique_id}"/>'
        "</ExtrinsicObject>"
    )


def found(*entries: str, status: str = "Success") -> bytes:
    return soap_body(
        '<q:AdhocQueryResponse xmlns:q="urn:oasis:names:tc:ebxml-regrep:xsd:query:3.0" '
        f'status="urn:oasis:names:tc:ebxml-regrep:ResponseStatusType:{status}">'
        f'<l xmlns="{RIM}">{"".join(entries)}</l></q:AdhocQueryResponse>'
    )


@pytest.mark.parametrize("code", ["XDSMissingDocument", "XDSRegistryBusy"])
@pytest_twisted.ensureDeferred
async def test_a_partial_success_says_yes_and_no(
    pki: Pki, structure: Structure, client: Client, code: str
) -> None:
    """Whoever asked has to look what the DMP holds, and has that question audited."""
    async with dmp(pki, http(soap_body(registry("PartialSuccess", code)))) as (server, url):
        outcome = await publish(client(url), structure)
    assert len(server.requests) == 1
    assert isinstance(outcome, Doubtful)
    assert outcome.held == Accepted((code,))
    if code == "XDSRegistryBusy":
        assert isinstance(outcome.absent, DmpUnavailable)
        assert outcome.absent.sent
    else:
        assert isinstance(outcome.absent, Refused)
        assert outcome.absent.code == code


# --- before sending -------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest_twisted.ensureDeferred
async def test_a_refused_connection_sent_nothing(
    structure: Structure, client: Client, closed_port: int
) -> None:
    error = await unavailable(publish(client(f"https://127.0.0.1:{closed_port}"), structure))
    assert not error.sent
    assert "connexion refusée" in str(error)


@implementer(IHostnameResolver)
class NoNames:
    """A resolver that finds nothing."""

    def resolveHostName(self, receiver: Any, *args: Any, **options: Any) -> Any:
        receiver.resolutionBegan(self)
        receiver.resolutionComplete()
        return receiver


@pytest_twisted.ensureDeferred
async def test_an_unknown_name_sent_nothing(structure: Structure, client: Client) -> None:
    net: Any = reactor
    before = net.installNameResolver(NoNames())
    try:
        error = await unavailable(publish(client("https://dmp.invalid"), structure))
    finally:
        net.installNameResolver(before)
    assert not error.sent
    assert "nom introuvable" in str(error)


@pytest.mark.parametrize("fault_of", ["unknown root", "wrong name", "plain text", "silence"])
@pytest_twisted.ensureDeferred
async def test_a_failed_handshake_sent_nothing(
    pki: Pki, structure: Structure, client: Client, fault_of: str
) -> None:
    options: dict[str, Any] = {}
    timeout = 5.0
    if fault_of == "unknown root":
        options["certificate"] = pki.stranger
    elif fault_of == "wrong name":
        options["certificate"] = pki.authentication
    elif fault_of in ("plain text", "silence"):
        options["certificate"] = None
        timeout = 5.0 if fault_of == "plain text" else 0.3
    async with dmp(pki, http(SUCCESS), cut_early=fault_of == "plain text", **options) as (server, url):
        error = await unavailable(publish(client(url, timeout=timeout), structure))
    assert not error.sent
    assert server.requests == []


@pytest_twisted.ensureDeferred
async def test_our_certificate_refused_in_tls_12_sent_nothing(
    pki: Pki, structure: Structure, client: Client
) -> None:
    options = {"lowerMaximumSecurityTo": ssl.TLSVersion.TLSv1_2}
    async with dmp(pki, http(SUCCESS), client_roots=pki.stranger_roots, **options) as (server, url):
        error = await unavailable(publish(client(url), structure))
    assert not error.sent
    assert server.requests == []


@pytest_twisted.ensureDeferred
async def test_our_certificate_refused_in_tls_13_may_have_sent(
    pki: Pki, structure: Structure, client: Client
) -> None:
    # In TLS 1.3 the client may speak before the server has judged its certificate: the doubt is kept.
    async with dmp(pki, http(SUCCESS), client_roots=pki.stranger_roots) as (server, url):
        error = await unavailable(publish(client(url), structure))
    assert error.sent
    assert server.requests == []


@pytest_twisted.ensureDeferred
async def test_a_cut_inside_the_request_may_have_sent(
    pki: Pki, structure: Structure, client: Client
) -> None:
    async with dmp(pki, http(SUCCESS), cut_early=True) as (_, url):
        error = await unavailable(publish(client(url), structure))
    assert error.sent


@pytest_twisted.ensureDeferred
async def test_an_unreadable_certificate_waits_and_sends_nothing(
    pki: Pki, structure: Structure, client: Client, closed_port: int, tmp_path: Path
) -> None:
    broken = attrs.evolve(structure, authentication=Certificate(tmp_path / "no", tmp_path / "no"))
    error = await unavailable(publish(client(f"https://127.0.0.1:{closed_port}"), broken))
    assert not error.sent


@pytest_twisted.ensureDeferred
async def test_a_renewed_certificate_is_presented_without_restart(
    pki: Pki, structure: Structure, client: Client, tmp_path: Path
) -> None:
    files = Certificate(tmp_path / "own.pem", tmp_path / "own.key")

    def install(pair: Certificate) -> None:
        files.certificate.write_bytes(pair.certificate.read_bytes())
        files.key.write_bytes(pair.key.read_bytes())

    install(pki.authentication)
    changing = attrs.evolve(structure, authentication=files)
    async with dmp(pki, http(SUCCESS)) as (server, url):
        one = client(url)
        await publish(one, changing)
        install(pki.signature)
        await publish(one, changing)
    assert [str(peer).split(",")[0] for peer in server.peers] == ["CN=org-auth", "CN=org-sign"]


@pytest.mark.threat("SSRF")
@pytest_twisted.ensureDeferred
async def test_plain_http_is_never_spoken(pki: Pki, structure: Structure, client: Client) -> None:
    async with dmp(pki, http(SUCCESS), certificate=None) as (server, url):
        error = await unavailable(publish(client(url.replace("https", "http")), structure))
    assert not error.sent
    assert server.accepted == 0


@pytest_twisted.ensureDeferred
async def test_cancelling_from_outside_cuts_the_attempt(
    pki: Pki, structure: Structure, client: Client
) -> None:
    arrived: Deferred[None] = Deferred()

    def script(request: bytes) -> str:
        arrived.callback(None)
        return HANG

    async with dmp(pki, script) as (_, url):
        work = ensureDeferred(publish(client(url), structure))
        await arrived
        work.cancel()
        with pytest.raises((CancelledError, DmpUnavailable)):
            await work


# --- questions ------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.CS.159")
@pytest_twisted.ensureDeferred
async def test_what_the_dmp_holds(pki: Pki, structure: Structure, client: Client) -> None:
    stranger = entry("2.25.999", uid="urn:uuid:other")
    old = entry(status=codes.DEPRECATED, uid="urn:uuid:old")
    async with dmp(pki, http(found(stranger, old, entry()))) as (server, url):
        held = await client(url).find_entry(structure, REPORT, KOS_UID)
    assert held is not None
    assert (held.entry_uuid, held.hash, held.size) == ("urn:uuid:e1", OURS, len(SUBMISSION.kos))
    assert held.status == codes.APPROVED
    (request,) = server.requests
    assert request.startswith(b"POST /si-dmp-server/v2/services/registry ")
    assert b"('2.25.111')" in request


@pytest.mark.parametrize("entries", [[], [entry("2.25.999")]])
@pytest_twisted.ensureDeferred
async def test_what_the_dmp_does_not_hold(
    pki: Pki, structure: Structure, client: Client, entries: list[str]
) -> None:
    async with dmp(pki, http(found(*entries))) as (_, url):
        assert await client(url).find_entry(structure, REPORT, KOS_UID) is None


@pytest.mark.parametrize(
    "answer",
    [
        http(soap_body(registry("Failure", "XDSRegistryMetadataError"))),
        http(soap_body(registry("Failure", "XDSRegistryBusy"))),
        http(found(status="PartialSuccess")),
        http(soap_body(fault("Sender", "VIHF"))),
        http(b"", "403 Forbidden"),
        http(b"garbage"),
        CUT,
    ],
)
@pytest_twisted.ensureDeferred
async def test_not_knowing_is_never_holding_nothing(
    pki: Pki, structure: Structure, client: Client, answer: bytes | str
) -> None:
    async with dmp(pki, answer) as (_, url):
        await unavailable(client(url).find_entry(structure, REPORT, KOS_UID))


def existence(query: str, authorization: str = "VALIDE") -> bytes:
    return http(
        soap_body(
            '<PRPA_IN201308UV02 xmlns="urn:hl7-org:v3">'
            '<acknowledgement><typeCode code="AA"/></acknowledgement>'
            f'<a><code code="AUTORISATION"/><value code="{authorization}"/></a>'
            f'<queryAck><queryResponseCode code="{query}"/></queryAck></PRPA_IN201308UV02>'
        )
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (existence("OK"), Accepted()),
        (existence("OK", "INTERDIT"), "INTERDIT"),
        (existence("NF", ""), "NF"),
        (http(soap_body(fault("Sender", "corps inattendu"))), "Sender"),
        (http(b"", "413 Content Too Large"), "HTTP 413"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_existence_test(
    pki: Pki, structure: Structure, client: Client, answer: bytes, expected: Any
) -> None:
    async with dmp(pki, answer) as (server, url):
        outcome = await client(url).patient_exists(structure, REPORT)
    assert outcome == expected or (isinstance(outcome, Refused) and outcome.code == expected)
    (request,) = server.requests
    assert request.startswith(b"POST /si-dmp-server/v2/services/patients ")
    assert b'action="urn:hl7-org:v3:PRPA_IN201307UV02"' in request
    assert f'extension="{INS}"'.encode() in request


@pytest.mark.parametrize("answer", [http(soap_body(registry("Success"))), http(b"x"), CUT])
@pytest_twisted.ensureDeferred
async def test_an_existence_test_without_answer(
    pki: Pki, structure: Structure, client: Client, answer: bytes | str
) -> None:
    async with dmp(pki, answer) as (_, url):
        await unavailable(client(url).patient_exists(structure, REPORT))


def test_message_ids_come_from_the_injected_source(pki: Pki, structure: Structure) -> None:
    fixed = uuid.UUID(int=7)
    config = make_config("https://127.0.0.1", pki.roots, structure)
    client = DmpClient(config, reactor, clock=FixedClock(), tls_policy=Policy, new_uuid=lambda: fixed)
    assert client.metadata(structure, SUBMISSION) == client.metadata(structure, SUBMISSION)
