"""The simulated DMP as a server: XDS.b over mutual TLS on Twisted, in a test's reactor or as a process.

`DmpServer` puts sockets around `DmpService`. As a process (`python -m drimbox.sim.dmp --help`) it prints
one JSON line with its ports once it listens, and a control endpoint on loopback lets others look and
misbehave: GET `/state`, POST `/behaviour` {"kind": "cut-after", "times": 1, "transaction": "TD2.1", …}
(also kinds "down", "up", "reset"; without "times" it becomes the default behaviour).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from OpenSSL import crypto
from twisted.internet import defer
from twisted.python import log
from twisted.web import http, resource, server

from drimbox.sim.behaviour import Kind, Script, behaviour_from_json
from drimbox.sim.dmp_patients import PatientRecord
from drimbox.sim.dmp_registry import Registry
from drimbox.sim.dmp_service import BASE_PATH, Answer, DmpService, Request
from drimbox.sim.dmp_trust import Trust
from drimbox.sim.listening import ServerContext, TlsListener, respond, utc_now
from drimbox.sim.pki import Pair

MAX_BODY = 64 * 1024 * 1024


class _DmpResource(resource.Resource):
    """Every path: the service decides what it serves."""

    isLeaf = True

    def __init__(self, dmp: DmpServer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dmp = dmp

    def render(self, request: Any) -> Any:
        path = request.path.decode("latin-1")
        if path not in {f"{BASE_PATH}/{name}" for name in ("repository", "registry", "patients")}:
            return _plain(request, http.NOT_FOUND, b"no such service")
        if request.method != b"POST":
            request.setHeader(b"Allow", b"POST")
            return _plain(request, http.NOT_ALLOWED, b"POST is due")
        body = request.content.read(MAX_BODY + 1)
        if len(body) > MAX_BODY:
            return _plain(request, http.REQUEST_ENTITY_TOO_LARGE, b"too large")
        certificate = request.channel.transport.getPeerCertificate()
        self._dmp.answer(
            request,
            Request(
                path=path,
                content_type=(request.getHeader(b"content-type") or b"").decode("latin-1"),
                body=body,
                client=certificate.to_cryptography() if isinstance(certificate, crypto.X509) else None,
            ),
        )
        return server.NOT_DONE_YET


def _plain(request: Any, status: int, text: bytes) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"text/plain")
    return text


class DmpServer:
    """The simulated DMP on a port.

    `service` judges and remembers, `script` misbehaves. `clock` returns the present instant. Port 0 lets
    the system choose; `port` and `base_url` are right after `start`.
    """

    def __init__(
        self,
        reactor: Any,
        service: DmpService,
        pair: Pair,
        client_roots: Path,
        *,
        client_crls: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.service = service
        self.script = Script()
        #: Told the transaction of each request once its last byte is here.
        self.arrived: Callable[[str], None] = lambda transaction: None
        self._reactor, self._clock, self._host = reactor, clock, host
        context = ServerContext(pair, client_roots, client_crls)
        self._listener = TlsListener(reactor, _DmpResource(self), context, host, port)

    @property
    def port(self) -> int:
        """The TCP port, also while down."""
        return self._listener.port

    @property
    def base_url(self) -> str:
        """What a client configures as `dmp.base_url`."""
        return f"https://{self._host}:{self.port}"

    def start(self) -> None:
        """Listen."""
        self._listener.up()

    async def down(self) -> None:
        """Refuse connections until `up`."""
        await self._listener.down()

    def up(self) -> None:
        """Listen again, on the same port."""
        self._listener.up()

    async def stop(self) -> None:
        """Stop for good."""
        await self._listener.down()

    def state(self) -> dict[str, Any]:
        """Return what is held and what happened, without patient data, for people and tests."""
        return {
            "listening": self._listener.listening,
            "documents": [
                {
                    "entryUUID": entry.entry_uuid,
                    "uniqueId": entry.unique_id,
                    "status": entry.status.rsplit(":", 1)[1],
                    "mimeType": entry.mime_type,
                    "hash": entry.hash,
                    "size": entry.size,
                    "structure": entry.structure,
                    "submission": entry.submission_uid,
                }
                for entry in self.service.registry.entries.values()
            ],
            "submissions": [
                {
                    "uniqueId": s.unique_id,
                    "at": s.at.isoformat(),
                    "entries": s.entries,
                    "touched": s.touched,
                }
                for s in self.service.registry.submissions.values()
            ],
            "exchanges": [
                {
                    "at": e.at.isoformat(),
                    "transaction": e.transaction,
                    "outcome": e.outcome,
                    "codes": e.codes,
                    "details": e.details,
                    "warnings": e.warnings,
                    "client": e.client,
                }
                for e in list(self.service.exchanges)[-500:]
            ],
        }

    def answer(self, web_request: Any, request: Request) -> None:
        """Treat one request as the script says."""
        service, now = self.service, self._clock()
        transaction = service.identify(request)
        self.arrived(transaction)
        behaviour = self.script.next(transaction)
        kind = behaviour.kind
        if kind is Kind.ERROR_AFTER:
            service.handle(request, now)
        if kind is Kind.CUT_BEFORE:
            service.record(request, transaction, kind.value, now)
            result = Answer(0, "", b"")
        elif kind in (Kind.ERROR, Kind.ERROR_AFTER):
            code = behaviour.code or "XDSRepositoryError"
            result = service.refusal(request, code, "simulated error", now)
        elif kind is Kind.FAULT:
            result = service.fault(request, behaviour.code, now)
        elif kind is Kind.HTTP:
            service.record(request, transaction, "http", now)
            result = Answer(behaviour.status, "text/plain", b"simulated HTTP error")
        else:
            result = service.handle(request, now)
        respond(self._reactor, web_request, behaviour, result.status, result.content_type, result.body)


class _Control(resource.Resource):
    """The loopback control endpoint."""

    isLeaf = True

    def __init__(self, dmp: DmpServer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dmp = dmp

    def render_GET(self, request: Any) -> bytes:
        """GET /state."""
        if request.path != b"/state":
            return _plain(request, http.NOT_FOUND, b"GET /state, POST /behaviour")
        request.setHeader(b"Content-Type", b"application/json")
        return json.dumps(self._dmp.state()).encode()

    def render_POST(self, request: Any) -> Any:
        """POST /behaviour."""
        if request.path != b"/behaviour":
            return _plain(request, http.NOT_FOUND, b"GET /state, POST /behaviour")
        try:
            data = json.loads(request.content.read(65536))
            if not isinstance(data, dict):
                raise ValueError("an object is due")
            kind = data.get("kind")
            times = data.pop("times", None)
            if kind == "down":
                work = defer.Deferred.fromCoroutine(self._dmp.down())
                work.addCallback(lambda _: (request.write(b"down\n"), request.finish()))
                work.addErrback(lambda failure: log.err(failure))
                return server.NOT_DONE_YET
            if kind == "up":
                self._dmp.up()
            elif kind == "reset":
                self._dmp.script.reset()
            elif times is None:
                self._dmp.script.default = behaviour_from_json(data)
            else:
                self._dmp.script.push(behaviour_from_json(data), int(times))
        except (ValueError, TypeError) as error:
            return _plain(request, http.BAD_REQUEST, str(error).encode())
        return b"ok\n"


def read_patients(path: Path) -> dict[str, PatientRecord]:
    """Read {"<INS>": {"authorization": "VALIDE", "open": true}, …}."""
    data = json.loads(path.read_text("utf-8"))
    return {ins: PatientRecord(**record) for ins, record in data.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the simulator as a process until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m drimbox.sim.dmp", description="DMP simulé : XDS.b, test d'existence, TLS mutuel."
    )
    parser.add_argument("--certificate", type=Path, required=True, help="certificat du serveur, PEM")
    parser.add_argument("--key", type=Path, required=True, help="clé du serveur, PEM")
    parser.add_argument("--roots", type=Path, required=True, help="autorités des structures, PEM")
    parser.add_argument("--crls", type=Path, help="listes de révocation, PEM")
    parser.add_argument("--host", default="127.0.0.1", help="adresse d'écoute")
    parser.add_argument("--port", type=int, default=0, help="port d'écoute (0 : au choix du système)")
    parser.add_argument(
        "--control-port", type=int, help="port de commande, sur 127.0.0.1 (0 : au choix du système)"
    )
    parser.add_argument("--journal", type=Path, help="fichier où garder le registre")
    parser.add_argument(
        "--patients", type=Path, help="fichier JSON des DMP existants (sans lui, tous existent)"
    )
    parser.add_argument(
        "--lenient", action="store_true", help="accepte les exemples publiés, signatures non vérifiables"
    )
    options = parser.parse_args(argv)

    from twisted.internet import reactor as installed

    reactor: Any = installed

    service = DmpService(
        trust=Trust.load(options.roots, options.crls),
        registry=Registry.open(options.journal),
        patients=read_patients(options.patients) if options.patients else None,
        lenient=options.lenient,
    )
    dmp = DmpServer(
        reactor,
        service,
        Pair(options.certificate, options.key),
        options.roots,
        client_crls=options.crls,
        host=options.host,
        port=options.port,
    )
    dmp.start()
    ready: dict[str, Any] = {"port": dmp.port}
    if options.control_port is not None:
        control = reactor.listenTCP(options.control_port, server.Site(_Control(dmp)), interface="127.0.0.1")
        ready["control"] = control.getHost().port
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    reactor.run()


if __name__ == "__main__":
    main()
