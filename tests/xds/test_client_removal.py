"""TD3.3c: a manifest withdrawn from the DMP, and every answer to it."""

from __future__ import annotations

import attrs
import pytest
import pytest_twisted

from drimbox.config import Structure
from drimbox.ports import Accepted, Refused
from drimbox.xml import safe_parse
from tests.xds.builders import REMOVAL
from tests.xds.conftest import Pki
from tests.xds.scripted import fault, http, message_id, mtom, registry, soap_body
from tests.xds.test_client import Client, dmp, unavailable
from tests.xds.test_client import client as client  # a fixture

pytestmark = pytest.mark.requirement("DB.CS.159", "DB.SO.26", "DB.SO.97")
ENTRY = "urn:uuid:8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c11"


@pytest_twisted.ensureDeferred
async def test_a_withdrawal_goes_to_the_registry_with_its_action_and_no_document(
    pki: Pki, structure: Structure, client: Client
) -> None:
    async with dmp(pki, lambda request: http(soap_body(registry("Success"), message_id(request)))) as (
        server,
        url,
    ):
        assert await client(url).remove(structure, REMOVAL, ENTRY) == Accepted()
    (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /si-dmp-server/v2/services/registry HTTP/1.1\r\n")
    assert b'action="urn:ihe:iti:2010:UpdateDocumentSet"' in head
    envelope = safe_parse(body)
    ns = {"wsa": "http://www.w3.org/2005/08/addressing"}
    assert envelope.findtext("*/wsa:Action", namespaces=ns) == "urn:ihe:iti:2010:UpdateDocumentSet"
    assert ENTRY.encode() in body
    assert b"ExtrinsicObject" not in body
    assert b"20260113094601" in body


@pytest_twisted.ensureDeferred
async def test_what_is_fixed_is_the_same_at_each_attempt(
    pki: Pki, structure: Structure, client: Client
) -> None:
    async with dmp(pki, http(soap_body(registry("Success")))) as (server, url):
        for _ in range(2):
            await client(url).remove(structure, REMOVAL, ENTRY)
    start, end = b"<lcm:SubmitObjectsRequest", b"</lcm:SubmitObjectsRequest>"
    bodies = {request[request.index(start) : request.index(end)] for request in server.requests}
    assert len(bodies) == 1
    assert REMOVAL.submission_uid.encode() in bodies.pop()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (http(soap_body(registry("Failure", "XDSMetadataUpdateError"))), "XDSMetadataUpdateError"),
        (
            mtom(soap_body(registry("Failure", "UnresolvedReferenceException"))),
            "UnresolvedReferenceException",
        ),
        (http(soap_body(fault("Sender", "corps inattendu"))), "Sender"),
        (b"HTTP/1.1 415 No\r\nContent-Length: 0\r\n\r\n", "HTTP 415"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_no_is_a_refusal(
    pki: Pki, structure: Structure, client: Client, answer: bytes, code: str
) -> None:
    async with dmp(pki, answer) as (_, url):
        outcome = await client(url).remove(structure, REMOVAL, ENTRY)
    assert isinstance(outcome, Refused)
    assert outcome.code == code


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
        http(soap_body(registry("Failure", "XDSRegistryBusy"))),
        http(soap_body(registry("PartialSuccess"))),
        http(soap_body("<nothing/>")),
        b"",
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_clear_answer_is_no_answer(
    pki: Pki, structure: Structure, client: Client, answer: bytes
) -> None:
    async with dmp(pki, answer) as (_, url):
        error = await unavailable(client(url).remove(structure, REMOVAL, ENTRY))
    assert error.sent


@pytest_twisted.ensureDeferred
async def test_the_submission_time_is_written_as_configured(
    pki: Pki, structure: Structure, client: Client
) -> None:
    local = attrs.evolve(REMOVAL, report=attrs.evolve(REMOVAL.report, effective_time="20260112093000+0100"))
    async with dmp(pki, http(soap_body(registry("Success")))) as (server, url):
        await client(url, times="local").remove(structure, local, ENTRY)
    assert b"20260113104601" in server.requests[0]
