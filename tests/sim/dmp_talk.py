"""Sending made requests to a `DmpService`, and reading what it did."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lxml import etree

from drimbox.sim.dmp_service import Answer, DmpService, Request
from drimbox.sim.pki import Pki
from tests.sim.dmp_requests import NOW, STRUCTURE, HttpRequest, Maker

GET = "5c4f972b-d56b-40ac-a5fc-c8ca9b40b9d4"
FIND = "14d4debf-8f97-4251-9a74-a90016b0af0d"


def send(service: DmpService, pki: Pki, request: HttpRequest, *, client: Any = None) -> Answer:
    certificate = pki.structures[STRUCTURE].authentication.load() if client is None else client
    made = Request(request.path, request.content_type, request.body, certificate)
    return service.handle(made, NOW + timedelta(seconds=5))


def codes(service: DmpService) -> tuple[str, ...]:
    return service.exchanges[-1].codes


def told(service: DmpService) -> str:
    last = service.exchanges[-1]
    return f"{last.outcome} {last.codes} {last.details} {last.warnings}"


def unique(uid: str) -> tuple[str, str]:
    return ("$XDSDocumentEntryUniqueId", f"('{uid}')")


def entries(body: bytes) -> list[Any]:
    return list(etree.fromstring(body).iter("{urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0}ExtrinsicObject"))


def published(service: DmpService, pki: Pki, maker: Maker, number: int = 1, **options: Any) -> str:
    request = maker.publication(
        kos_uid=f"2.999.20.{number}",
        set_uid=f"2.999.21.{number}",
        signature_uid=f"2.999.22.{number}",
        **options,
    )
    send(service, pki, request)
    assert service.exchanges[-1].outcome == "success", told(service)
    entry = service.registry.by_unique_id(f"2.999.20.{number}")
    assert entry is not None
    return entry.entry_uuid
