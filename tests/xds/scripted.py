"""A DMP of the tests: a TLS server on 127.0.0.1 that does what its script says, right or wrong.

It judges nothing and shares no code with what it tests: it keeps the requests and plays answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor, ssl
from twisted.internet.protocol import Factory, Protocol

from drimbox.config import Certificate

#: What a script returns: bytes to write (the connection is then closed), or one of these words.
HANG = "hang"
CUT = "cut"
#: Cut as soon as the first bytes of a request come.
CUT_EARLY = "cut early"
Script = Callable[[bytes], bytes | str]


class _Connection(Protocol):
    factory: Any

    def connectionMade(self) -> None:
        self._data = b""
        self._answered = False
        self.factory.connections.append(self)
        self.factory.accepted += 1

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.connections.remove(self)

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if self._answered:
            return
        if self.factory.cut_early:
            self._answered = True
            self.transport.abortConnection()
            return
        head, blank, body = self._data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not blank or len(body) < int(length[1] if length else 0):
            return
        self._answered = True
        self.factory.requests.append(self._data)
        peer = getattr(self.transport, "getPeerCertificate", lambda: None)()
        self.factory.peers.append(None if peer is None else peer.to_cryptography().subject.rfc4514_string())
        answer = self.factory.script(self._data)
        if answer == CUT:
            self.transport.abortConnection()
        elif isinstance(answer, bytes):
            self.transport.write(answer)
            if self.factory.persistent:
                self._data, self._answered = b"", False
            else:
                self.transport.loseConnection()


class ScriptedDmp(Factory):
    """The server; `requests` and `peers` (certificate common names) keep what came."""

    protocol = _Connection
    noisy = False

    def __init__(self, script: Script, *, cut_early: bool = False, persistent: bool = False) -> None:
        self.script = script
        self.cut_early = cut_early
        #: Leave connections open for the next request.
        self.persistent = persistent
        self.requests: list[bytes] = []
        self.peers: list[str | None] = []
        self.connections: list[Any] = []
        self.accepted = 0
        self._port: Any = None

    def listen(self, certificate: Certificate | None, client_roots: Any = None, **options: Any) -> str:
        """Listen on a free port, with TLS when a certificate is given; return the base URL."""
        net: Any = reactor
        if certificate is None:
            self._port = net.listenTCP(0, self, interface="127.0.0.1")
        else:
            pair = ssl.PrivateCertificate.loadPEM(
                certificate.key.read_bytes() + certificate.certificate.read_bytes()
            )
            roots = None
            if client_roots is not None:
                roots = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(client_roots.read_bytes())])
            context = ssl.CertificateOptions(
                privateKey=pair.privateKey.original, certificate=pair.original, trustRoot=roots, **options
            )
            self._port = net.listenSSL(0, self, context, interface="127.0.0.1")
        return f"https://127.0.0.1:{self._port.getHost().port}"

    def stop(self) -> Any:
        """Take no new connection."""
        return self._port.stopListening()

    def close(self) -> Any:
        """Stop listening and cut what is open."""
        for connection in list(self.connections):
            connection.transport.abortConnection()
        return self._port.stopListening()


def http(
    body: bytes, status: str = "200 OK", content_type: str = "application/soap+xml", **headers: str
) -> bytes:
    """An HTTP answer with its length."""
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


def soap_body(content: str, relates: str = "") -> bytes:
    """A SOAP envelope with this content."""
    head = (
        f'<RelatesTo xmlns="http://www.w3.org/2005/08/addressing">{relates}</RelatesTo>' if relates else ""
    )
    return (
        '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope">'
        f"<s:Header>{head}</s:Header><s:Body>{content}</s:Body></s:Envelope>"
    ).encode()


def registry(status: str, *errors: str, context: str = "") -> str:
    """A RegistryResponse with these error codes."""
    listed = "".join(
        f'<r:RegistryError errorCode="{code}" codeContext="{context}" '
        'severity="urn:oasis:names:tc:ebxml-regrep:ErrorSeverityType:Error"/>'
        for code in errors
    )
    listed = f"<r:RegistryErrorList>{listed}</r:RegistryErrorList>" if errors else ""
    return (
        '<r:RegistryResponse xmlns:r="urn:oasis:names:tc:ebxml-regrep:xsd:rs:3.0" '
        f'status="urn:oasis:names:tc:ebxml-regrep:ResponseStatusType:{status}">{listed}</r:RegistryResponse>'
    )


def fault(code: str, reason: str, subcode: str = "") -> str:
    """A SOAP 1.2 fault."""
    inner = f"<s:Subcode><s:Value>{subcode}</s:Value></s:Subcode>" if subcode else ""
    return (
        f"<s:Fault><s:Code><s:Value>s:{code}</s:Value>{inner}</s:Code>"
        f'<s:Reason><s:Text xml:lang="fr">{reason}</s:Text></s:Reason></s:Fault>'
    )


def mtom(envelope: bytes) -> bytes:
    """An MTOM answer as CXF writes it."""
    content_type = (
        'multipart/related; type="application/xop+xml"; boundary="uuid:3d6c"; '
        'start="<root.message@cxf.apache.org>"; start-info="application/soap+xml"'
    )
    head = (
        b"\r\n--uuid:3d6c\r\n"
        b'Content-Type: application/xop+xml; charset=UTF-8; type="application/soap+xml"\r\n'
        b"Content-Transfer-Encoding: binary\r\nContent-ID: <root.message@cxf.apache.org>\r\n\r\n"
    )
    return http(head + envelope + b"\r\n--uuid:3d6c--", content_type=content_type)


def message_id(request: bytes) -> str:
    """The wsa:MessageID of a request."""
    found = re.search(rb"<MessageID[^>]*>([^<]+)<", request)
    assert found
    return found[1].decode()
