"""The least that Twisted costs: servers that answer every request with the same bytes, in one process.

`python -m bench.bare CERTIFICATE KEY` listens on three ports of the loopback and names them in one line of
JSON, then serves until its standard input ends:
- `tcp`: a protocol that writes the answer when the end of a request has come, no TLS, nothing read;
- `tls`: the same behind Twisted's TLS;
- `web`: a resource of `twisted.web` behind that TLS, as anybody would write it.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet import ssl, stdio
from twisted.internet.protocol import Factory, Protocol
from twisted.web import resource, server

from bench.program import say
from drimbox.sim.peers import LOOPBACK

#: As long as what the gateway says of itself.
BODY = (
    b'{"status":"DOWN","checks":[{"name":"VISIONNEUSE","status":"DOWN"},'
    b'{"name":"WADO-RS","status":"UP"},{"name":"LISTEBLANCHE","status":"UP"}]}'
)
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: bare\r\nDate: Mon, 30 Nov 2026 10:00:00 GMT\r\nContent-Length: %d\r\n"
    b"Cache-Control: no-store\r\nContent-Type: application/json\r\n\r\n%b" % (len(BODY), BODY)
)


class Same(Protocol):
    """Answers whatever ends as a request without a body does."""

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        """Answer."""
        if data.endswith(b"\r\n\r\n"):
            self.transport.write(_ANSWER)


class _Page(resource.Resource):
    isLeaf = True  # noqa: N815

    def render_GET(self, request: server.Request) -> bytes:
        request.setHeader(b"Content-Type", b"application/json")
        return BODY


class _End(Protocol):
    def connectionLost(self, reason: object = None) -> None:
        """Whoever started us is gone."""
        reactor: Any = installed
        if reactor.running:
            reactor.stop()


def main(certificate: str, key: str) -> None:
    """Serve."""
    reactor: Any = installed
    bare, web = Factory.forProtocol(Same), server.Site(_Page())
    context = ssl.DefaultOpenSSLContextFactory(key, certificate)
    ports = {
        "tcp": reactor.listenTCP(0, bare, interface=LOOPBACK),
        "tls": reactor.listenSSL(0, bare, context, interface=LOOPBACK),
        "web": reactor.listenSSL(0, web, context, interface=LOOPBACK),
    }
    stdio.StandardIO(_End())
    reactor.callWhenRunning(lambda: say(**{name: port.getHost().port for name, port in ports.items()}))
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
