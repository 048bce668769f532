"""TLS listening for the simulated servers, and the ways a connection can go wrong.

A `TlsListener` can be taken down (the port refuses, open connections are cut) and put up again on the
same port. `respond` writes one HTTP answer the way a `Behaviour` wants it written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet import defer
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IListeningPort, IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.protocols.policies import WrappingFactory
from twisted.web import http, resource, server
from zope.interface import implementer

from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.pki import Pair

CIPHERS = (
    b"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
    b":ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
)


def utc_now() -> datetime:
    """Return the present instant."""
    return datetime.now(UTC)


@implementer(IOpenSSLServerConnectionCreator)
class ServerContext:
    """TLS 1.2 or higher; with `client_roots` a client certificate is demanded and verified."""

    def __init__(self, pair: Pair, client_roots: Path | None = None, crls: Path | None = None) -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(CIPHERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION)
        context.use_certificate_chain_file(os.fspath(pair.certificate))
        context.use_privatekey_file(os.fspath(pair.key))
        context.check_privatekey()
        if client_roots is not None:
            context.load_verify_locations(os.fspath(client_roots))
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, None)
            if crls is not None:
                store = context.get_cert_store()
                assert store is not None
                store.load_locations(os.fspath(crls))
                store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
        self._context = context

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        """Make the connection object Twisted drives."""
        return SSL.Connection(self._context, None)


class _Site(server.Site):
    """A site that writes no access log and shows no traceback."""

    def __init__(self, root: resource.Resource) -> None:
        super().__init__(root, timeout=120)  # type: ignore[no-untyped-call]
        self.displayTracebacks = False

    def log(self, request: http.Request) -> None:
        """No access log: paths and addresses of tests interest nobody."""


class TlsListener:
    """One listening port that can be taken down and put up again."""

    def __init__(
        self, reactor: Any, root: resource.Resource, context: ServerContext, host: str, port: int
    ) -> None:
        self._reactor, self._context, self._host = reactor, context, host
        # The wrapper knows the open connections, so that going down can cut them.
        self._site = WrappingFactory(_Site(root))
        self._port: IListeningPort | None = None
        #: Port number; chosen by the system at the first `up` when it was 0.
        self.port = port

    @property
    def listening(self) -> bool:
        """Say whether connections are taken."""
        return self._port is not None

    def up(self) -> None:
        """Listen (again)."""
        if self._port is None:
            self._port = self._reactor.listenSSL(self.port, self._site, self._context, interface=self._host)
            address = self._port.getHost()
            assert isinstance(address, IPv4Address)
            self.port = address.port

    async def down(self) -> None:
        """Refuse connections and cut those that are open."""
        port, self._port = self._port, None
        if port is not None:
            await defer.maybeDeferred(port.stopListening)
        for wrapper in list(self._site.protocols):
            wrapper.transport.abortConnection()


class SessionServer:
    """A server of sessions: it can be taken down, which cuts those that are open, and put up again.

    The sessions keep themselves in `connections`.
    """

    def __init__(self, reactor: Any, port: int) -> None:
        self._reactor = reactor
        #: Port number; chosen by the system at the first `listen` when it was 0.
        self.port = port
        self.connections: set[Any] = set()
        self._port: IListeningPort | None = None

    def listen(self, session: Callable[[], Protocol], context: ServerContext | None) -> None:
        """Listen (again), with a `context` in TLS from the first byte; make a `session` for each client."""
        factory = _Sessions(session)
        if context is None:
            self._port = self._reactor.listenTCP(self.port, factory, interface="127.0.0.1")
        else:
            self._port = self._reactor.listenSSL(self.port, factory, context, interface="127.0.0.1")
        assert self._port is not None
        address: Any = self._port.getHost()
        self.port = address.port

    async def down(self) -> None:
        """Refuse connections and cut those that are open."""
        port, self._port = self._port, None
        if port is not None:
            await defer.maybeDeferred(port.stopListening)
        for session in list(self.connections):
            session.transport.abortConnection()


class _Sessions(ServerFactory):
    noisy = False

    def __init__(self, session: Callable[[], Protocol]) -> None:
        self._session = session

    def buildProtocol(self, addr: Any) -> Protocol:
        return self._session()


def respond(
    reactor: Any,
    request: http.Request,
    behaviour: Behaviour,
    status: int,
    content_type: str,
    body: bytes,
    headers: tuple[tuple[str, str], ...] = (),
) -> None:
    """Write one answer as `behaviour` wants it, after its delay. The client may be gone by then."""
    gone: list[object] = []
    request.notifyFinish().addErrback(gone.append)

    def write() -> None:
        if gone:
            return
        kind = behaviour.kind
        if kind is Kind.SILENT:
            return
        if kind in (Kind.CUT_BEFORE, Kind.CUT_AFTER):
            _abort(request)
            return
        data = body
        if kind is Kind.GARBAGE:
            data = b"\x00\xff<<garbage " + os.urandom(64)
        elif kind is Kind.HUGE:
            data = body + b" " * behaviour.size
        kind_of_body = behaviour.code if kind is Kind.MEDIA_TYPE else content_type
        request.setResponseCode(status)
        request.setHeader(b"Content-Type", kind_of_body.encode("ascii"))
        request.setHeader(b"Content-Length", b"%d" % len(data))
        for name, value in headers:
            request.setHeader(name.encode("ascii"), value.encode("ascii"))
        if kind is Kind.CUT_ANSWER:
            request.write(data[: len(data) // 2])
            # Once the bytes are on their way: an abort at once would throw them away unsent.
            reactor.callLater(0.05, lambda: None if gone else _abort(request))
            return
        request.write(data)
        request.finish()

    if behaviour.seconds > 0:
        reactor.callLater(behaviour.seconds, write)
    else:
        write()


def _abort(request: Any) -> None:
    transport = request.channel.transport
    if transport is not None:
        transport.abortConnection()
