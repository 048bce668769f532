"""Good inputs of the DMP validator, made by our own producer, and ways to spoil them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs
from lxml import etree

from drimbox.model import Visibility
from drimbox.ports import Removal, Submission
from drimbox.xds import soap
from drimbox.xds.metadata import removal_metadata, submission_metadata
from drimbox.xds.sender import SigningPair, load_pair
from drimbox.xds.signature import signature_document
from drimbox.xds.vihf import vihf
from tests.kos import samples
from tests.xds.builders import make_sender, make_structure
from tests.xds.pki import Authority

RIM = "urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0"
NS = {
    "r": RIM,
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://www.w3.org/2005/08/addressing",
    "x": "urn:ihe:iti:xds-b:2007",
    "saml": "urn:oasis:names:tc:SAML:2.0:assertion",
    "ds": "http://www.w3.org/2000/09/xmldsig#",
    "e": "http://uri.etsi.org/01903/v1.1.1#",
}
OLD_ENTRY = "urn:uuid:8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c11"
NOW = datetime.now(UTC).replace(microsecond=123000)
REMOVAL_TIME = NOW
Edit = Callable[[Any], None]


@attrs.define(repr=False)
class Pieces:
    """What a publication is made of; a spoiler changes one piece, or the assembled bytes."""

    pair: SigningPair
    kos: bytes
    signature: bytes
    assertion: bytes
    metadata: bytes
    action: str = soap.PUBLISH
    #: Changes of the envelope as a tree, of the HTTP head and body as bytes.
    envelope_edits: list[Edit] = attrs.field(factory=list)
    byte_edits: list[Callable[[bytes], bytes]] = attrs.field(factory=list)
    given_kos: bytes | None = None

    def edit(self, piece: str, change: Edit) -> None:
        """Change one piece as a tree."""
        root = etree.fromstring(getattr(self, piece))
        change(root)
        setattr(self, piece, etree.tostring(root))

    def capture(self) -> bytes:
        """Return the HTTP request as it would be captured."""
        header = soap.Header(
            "https://dmp.invalid/si-dmp-server/v2/services/repository",
            self.action,
            "urn:uuid:a6ba8f7f-b214-4a2d-96f1-54293d537ce3",
            self.assertion,
        )
        if self.action == soap.PUBLISH:
            message = soap.publish_request(header, self.metadata, self.kos, self.signature)
        else:
            message = soap.plain_request(header, self.metadata)
        body = message.body
        if self.envelope_edits:
            start = body.index(b"<soap:Envelope")
            end = body.index(b"</soap:Envelope>") + len(b"</soap:Envelope>")
            root = etree.fromstring(body[start:end])
            for change in self.envelope_edits:
                change(root)
            body = body[:start] + etree.tostring(root) + body[end:]
        data = request(message.content_type, body)
        for byte_edit in self.byte_edits:
            data = byte_edit(data)
        return data

    def envelope(self) -> bytes:
        """Return the SOAP envelope alone."""
        body = self.capture()
        end = body.index(b"</soap:Envelope>") + len(b"</soap:Envelope>")
        return body[body.index(b"<soap:Envelope") : end]


def request(content_type: str, body: bytes) -> bytes:
    """Return an HTTP request around a body."""
    head = (
        "POST /si-dmp-server/v2/services/repository HTTP/1.1\r\nHost: dmp.invalid\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def make_pair(authority: Authority) -> SigningPair:
    """Issue a signature certificate."""
    return load_pair(authority.issue("org-sign", signing=True))


def make_publication(
    pair: SigningPair,
    *,
    replaces: str | None = OLD_ENTRY,
    digest: str = "sha256",
    version: str = "1.1.1",
    **settings: str,
) -> Pieces:
    """Make a publication that replaces an older one, with every option the rules know of."""
    kos = samples.build()
    submission = Submission(
        kos=kos,
        sop_instance_uid="2.25.9001",
        submission_uid="2.25.444",
        signature_uid="2.25.555",
        submission_time=NOW,
        report=samples.REPORT,
        visibility=Visibility(masked_to_professionals=True),
        secret_connection=True,
        patient_class="O",
        study=samples.study(),
        structure_id="1999999999",
    )
    sender = make_sender(make_structure(samples.STRUCTURE.signature), digest=digest, **settings)
    signature = signature_document(
        signature_uid="2.25.555",
        submission_uid="2.25.444",
        documents=[("2.25.9001", kos)],
        signing_time=NOW,
        pair=pair,
        digest=digest,
        xades=version,
    )
    assertion = vihf(
        sender,
        samples.REPORT,
        secret_connection=True,
        assertion_id="_5f1a4b5e-0000-4000-8000-000000000001",
        instant=NOW,
        pair=pair,
    )
    metadata = submission_metadata(sender, submission, signature, replaces)
    return Pieces(pair, kos, signature, assertion, metadata)


def make_removal(good: Pieces) -> Pieces:
    """Make a TD3.3c from the pieces of a publication."""
    removal = Removal(
        sop_instance_uid="2.25.9001",
        submission_uid="2.25.446",
        submission_time=NOW,
        report=samples.REPORT,
        patient_class="O",
        structure_id="1999999999",
    )
    sender = make_sender(make_structure(samples.STRUCTURE.signature))
    metadata = removal_metadata(sender, removal, OLD_ENTRY)
    return attrs.evolve(good, metadata=metadata, action=soap.UPDATE)


def make_xdm(good: Pieces) -> bytes:
    """Make the METADATA.XML of a set that holds the manifest alone."""
    root = etree.fromstring(good.metadata)
    for item in root.xpath(
        "//r:ExtrinsicObject[@id='Signature01'] | //r:Association[@sourceObject='Signature01'"
        " or @targetObject='Signature01' or contains(@associationType, 'RPLC')]",
        namespaces=NS,
    ):
        item.getparent().remove(item)
    entry = root.xpath("//r:ExtrinsicObject", namespaces=NS)[0]
    slot = etree.SubElement(entry, f"{{{RIM}}}Slot", name="URI")
    etree.SubElement(
        etree.SubElement(slot, f"{{{RIM}}}ValueList"), f"{{{RIM}}}Value"
    ).text = "SS000001/KOS_1_1.DCM"
    entry.insert(0, slot)
    return etree.tostring(root)
