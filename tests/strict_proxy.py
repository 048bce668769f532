"""A small strict CONNECT proxy for tests: takes nothing RFC 9110 does not allow, and fails on demand."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet import protocol, reactor
from twisted.internet.endpoints import HostnameEndpoint

LOOPBACK = "127.0.0.1"
_REQUEST = re.compile(
    rb"CONNECT ((?:\[[0-9a-f:]+\]|[a-z0-9.-]+):[0-9]{1,5}) HTTP/1\.1\r\nHost: ([^\r\n]+)\r\n"
    rb"(?:Proxy-Authorization: (Basic [A-Za-z0-9+/=]+)\r\n)?\r\n"
)
web: Any = reactor


class StrictProxy(protocol.Factory):
    """Listens on loopback. `fault` says what goes wrong; `targets` are those asked for."""

    noisy = False

    def __init__(self, authorization: bytes | None = None) -> None:
        self.authorization = authorization
        #: "", "silent", "garbage", "endless", "cut", "early", "status NNN", "cut after N" bytes upstream.
        self.fault = ""
        #: Where every tunnel ends, whatever was asked for; None for what was asked for.
        self.elsewhere: int | None = None
        self.targets: list[str] = []
        self.faults: list[str] = []
        self.open: list[Any] = []

    def up(self) -> None:
        self._listening = web.listenTCP(0, self, interface=LOOPBACK)
        self.port: int = self._listening.getHost().port

    async def down(self) -> None:
        for each in list(self.open):
            each.transport.abortConnection()
        await self._listening.stopListening()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def buildProtocol(self, addr: Any) -> Any:
        return _Client(self)


class _Client(protocol.Protocol):
    transport: Any

    def __init__(self, proxy: StrictProxy) -> None:
        self.proxy = proxy
        self.head = b""
        self.server: Any = None
        self.passed = 0

    def connectionMade(self) -> None:
        self.proxy.open.append(self)

    def connectionLost(self, reason: Any = None) -> None:
        self.proxy.open.remove(self)
        if self.server is not None:
            self.server.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self.server is not None:
            self._pass(data)
            return
        self.head += data
        if b"\r\n\r\n" not in self.head:
            return
        found = _REQUEST.fullmatch(self.head)
        if found is None or found[1] != found[2]:
            self.proxy.faults.append(repr(self.head[:200]))
            self._answer(400)
            return
        self.proxy.targets.append(found[1].decode())
        if self.proxy.authorization is not None and found[3] != self.proxy.authorization:
            self._answer(407)
            return
        self._obey(found[1].decode())

    def _obey(self, target: str) -> None:
        fault = self.proxy.fault
        if fault == "silent":
            return
        if fault == "cut":
            self.transport.abortConnection()
        elif fault == "garbage":
            self.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        elif fault == "endless":
            self.transport.write(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: " + b"a" * 100_000)
        elif fault.startswith("status "):
            self._answer(int(fault.split()[1]))
        else:
            host, _, port = target.rpartition(":")
            endpoint = HostnameEndpoint(
                web, host.strip("[]"), self.proxy.elsewhere or int(port), timeout=10
            )
            connecting: Any = endpoint.connect(protocol.Factory.forProtocol(lambda: _Server(self)))
            connecting.addErrback(lambda _: self._answer(502))

    def established(self, server: Any) -> None:
        self.server = server
        more = b"EARLY" if self.proxy.fault == "early" else b""
        self.transport.write(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 strict\r\n\r\n" + more)

    def _pass(self, data: bytes) -> None:
        self.passed += len(data)
        fault = self.proxy.fault
        if fault.startswith("cut after ") and self.passed > int(fault.split()[2]):
            self.server.transport.abortConnection()
            self.transport.abortConnection()
            return
        self.server.transport.write(data)

    def _answer(self, status: int) -> None:
        self.transport.write(b"HTTP/1.1 %d Non\r\nContent-Length: 0\r\n\r\n" % status)
        self.transport.loseConnection()


class _Server(protocol.Protocol):
    transport: Any

    def __init__(self, client: _Client) -> None:
        self.client = client

    def connectionMade(self) -> None:
        self.client.established(self)

    def dataReceived(self, data: bytes) -> None:
        self.client.transport.write(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.client.transport.loseConnection()
