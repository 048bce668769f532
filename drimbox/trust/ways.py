"""The way to a server of the outside: straight, or through the hospital's CONNECT proxy (`[proxy]`).

A tunnel carries bytes: TLS is made inside it, with the server itself, and its name is verified as without a
proxy. What goes wrong before the tunnel is open is `ProxyFailed`: nothing was said to the server by then.
An address in plain `http` (revocation lists, which are signed) has no TLS to tunnel: the proxy is asked for
it by its whole address.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ProxyAgent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from drimbox.config import ProxySettings
from drimbox.httpbody import discard
from drimbox.proxyconnect import ConnectAnswer, ProxyFailed, basic, bypasses, connect_request, refuse
from drimbox.secretfile import read_secret
from drimbox.trust.reach import reason_of

_AUTHENTICATE = 407


class Ways:
    """How each kind of server is reached; `settings` is None where there is no proxy."""

    def __init__(self, reactor: Any, settings: ProxySettings | None) -> None:
        """Read the proxy's password. Raises `SecretUnusable`."""
        self.reactor = reactor
        self._settings = settings
        self._authorization: bytes | None = None
        if settings is not None:
            self._uri = URI.fromBytes(settings.url.encode("ascii"))
            if settings.user is not None and settings.password_file is not None:
                self._authorization = basic(settings.user, read_secret(settings.password_file, blanks=True))

    def agent(
        self, kind: str, policy: IPolicyForHTTPS, timeout: float, pool: HTTPConnectionPool | None = None
    ) -> IAgent:
        """Return an agent for servers of one kind ("psc", "whitelist" ...); `timeout` is for connecting."""
        return _Agent(self, kind, policy, timeout, pool)

    def to(self, kind: str, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
        """Return the endpoint that ends at a server of one kind, TLS not begun."""
        if self.proxied(kind, host):
            asked = connect_request(host, port, self._authorization)
            return _Tunnel(self.reactor, self.proxy(timeout), asked, timeout)
        straight: IStreamClientEndpoint = HostnameEndpoint(
            self.reactor, host.encode("ascii"), port, timeout=timeout
        )
        return straight

    def proxied(self, kind: str, host: str) -> bool:
        """Say whether a server is reached through the proxy."""
        settings = self._settings
        return settings is not None and kind in settings.uses and not bypasses(host, settings.no_proxy)

    def proxy(self, timeout: float) -> IStreamClientEndpoint:
        """Return the endpoint that ends at the proxy itself."""
        return _ToProxy(HostnameEndpoint(self.reactor, self._uri.host, self._uri.port, timeout=timeout))

    async def ask(
        self, timeout: float, method: bytes, uri: bytes, headers: Headers, body: IBodyProducer | None
    ) -> IResponse:
        """Have the proxy fetch a plain `http` address. Raises `ProxyFailed` when it does not know us."""
        headers = headers.copy()
        if self._authorization is not None:
            headers.setRawHeaders(b"Proxy-Authorization", [self._authorization])
        agent = ProxyAgent(self.proxy(timeout), self.reactor)
        response: IResponse = await agent.request(method, uri, headers, body)
        if response.code == _AUTHENTICATE:
            discard(response)
            refuse(response.code)
        return response


@implementer(IAgentEndpointFactory)
class _Endpoints:
    def __init__(self, ways: Ways, kind: str, policy: IPolicyForHTTPS, timeout: float) -> None:
        self._ways, self._kind, self._policy, self._timeout = ways, kind, policy, timeout

    def endpointForURI(self, uri: Any) -> Any:
        tcp = self._ways.to(self._kind, uri.host.decode("ascii"), uri.port, self._timeout)
        if uri.scheme == b"http":
            return tcp
        creator: Any = self._policy.creatorForNetloc(uri.host, uri.port)
        return wrapClientTLS(creator, tcp)


@implementer(IAgent)
class _Agent:
    def __init__(
        self,
        ways: Ways,
        kind: str,
        policy: IPolicyForHTTPS,
        timeout: float,
        pool: HTTPConnectionPool | None,
    ) -> None:
        self._ways, self._kind, self._timeout = ways, kind, timeout
        endpoints = _Endpoints(ways, kind, policy, timeout)
        self._agent = Agent.usingEndpointFactory(ways.reactor, endpoints, pool)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,  # noqa: N803 - the interface's name
    ) -> Deferred[IResponse]:
        where = URI.fromBytes(uri)
        if where.scheme == b"http" and self._ways.proxied(self._kind, where.host.decode("ascii")):
            asked = self._ways.ask(self._timeout, method, uri, headers or Headers(), bodyProducer)
            return Deferred.fromCoroutine(asked)
        response: Deferred[IResponse] = self._agent.request(method, uri, headers, bodyProducer)
        return response


@implementer(IStreamClientEndpoint)
class _ToProxy:
    """The proxy; that it cannot be reached is its own failure, and nobody else's."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, factory: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = self._endpoint.connect(factory)
        return deferred.addErrback(self._unreachable)

    @staticmethod
    def _unreachable(failure: Failure) -> Failure:
        # Whoever gave up meanwhile has no need of a reason.
        if failure.check(CancelledError, ConnectingCancelledError):
            return failure
        return Failure(ProxyFailed(f"proxy injoignable : {reason_of(failure.value or ConnectError())}"))


@implementer(IStreamClientEndpoint)
class _Tunnel:
    """An endpoint at the other end of the proxy."""

    def __init__(self, reactor: Any, proxy: IStreamClientEndpoint, request: bytes, timeout: float) -> None:
        self._reactor, self._proxy, self._request, self._timeout = reactor, proxy, request, timeout

    def connect(self, factory: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._connect(factory))

    async def _connect(self, factory: Any) -> Any:
        outer: Any = Factory.forProtocol(lambda: _Tunnelling(self._request, factory))
        outer.noisy = False
        tunnel: Any = await self._proxy.connect(outer)
        timer = self._reactor.callLater(self._timeout, tunnel.too_slow)
        try:
            return await tunnel.opened
        finally:
            if timer.active():
                timer.cancel()


class _Tunnelling(Protocol):
    """Asks for the tunnel, then hands everything on to the protocol inside."""

    transport: Any

    def __init__(self, request: bytes, factory: Any) -> None:
        self._request = request
        self._factory = factory
        self._answer = ConnectAnswer()
        self._inner: Any = None
        #: Fires with the protocol inside.
        self.opened: Deferred[Any] = Deferred(self._given_up)

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        try:
            if not self._answer.receive(data):
                return
        except ProxyFailed as failed:
            self._fail(failed)
            return
        if self.opened.called:
            return
        self._inner = self._factory.buildProtocol(self.transport.getPeer())
        if self._inner is None:
            self._fail(ProxyFailed("connexion refusée"))
            return
        self._inner.makeConnection(self.transport)
        self.opened.callback(self._inner)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        else:
            self._fail(ProxyFailed("le proxy a coupé la connexion"))

    def too_slow(self) -> None:
        """The time to open the tunnel is over."""
        self._fail(ProxyFailed("le proxy ne répond pas dans le délai"))

    def _fail(self, failed: ProxyFailed) -> None:
        if not self.opened.called:
            self.opened.errback(failed)
            self.transport.abortConnection()

    def _given_up(self, _: Deferred[Any]) -> None:
        self.transport.abortConnection()
