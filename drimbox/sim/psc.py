"""Pro Santé Connect and the e-Santé proxy in front of it, simulated, on a TLS port with misbehaviours.

The proxy only moves the base URL (interfaces.md 7.5), so one server stands for both. In a test's reactor:
`PscServer`; as a process: `python -m drimbox.sim.psc --help`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
from twisted.web import resource, server

from drimbox.sim.behaviour import Behaviour, Kind, Script
from drimbox.sim.listening import ServerContext, TlsListener, respond, utc_now
from drimbox.sim.pki import Pair
from drimbox.sim.psc_service import (
    INTROSPECT,
    Professional,
    PscAnswer,
    PscRequest,
    PscService,
    endpoint_of,
)

MAX_BODY = 64 * 1024


class _PscResource(resource.Resource):
    isLeaf = True

    def __init__(self, psc: PscServer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._psc = psc

    def render(self, request: Any) -> Any:
        path, _, query = request.uri.partition(b"?")
        body = request.content.read(MAX_BODY + 1)
        if len(body) > MAX_BODY:
            request.setResponseCode(413)
            return b""

        def header(name: bytes) -> str:
            return (request.getHeader(name) or b"").decode("latin-1")

        asked = PscRequest(
            method=request.method.decode("latin-1"),
            path=path.decode("latin-1"),
            query=query.decode("latin-1"),
            authorization=header(b"authorization"),
            content_type=header(b"content-type"),
            body=body,
        )
        self._psc.answer(request, asked)
        return server.NOT_DONE_YET


class PscServer:
    """The simulator on a TLS port. `service` answers, `script` misbehaves ("introspection", "token" …)."""

    def __init__(
        self,
        reactor: Any,
        pair: Pair,
        *,
        service: PscService | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], datetime] = utc_now,
        client_roots: Path | None = None,
    ) -> None:
        """With `client_roots` a client certificate is demanded, and verified against them."""
        self.service = service or PscService()
        self.script = Script()
        self._reactor, self._clock, self._host = reactor, clock, host
        self._listener = TlsListener(
            reactor, _PscResource(self), ServerContext(pair, client_roots), host, port
        )

    @property
    def port(self) -> int:
        """The TCP port, also while down."""
        return self._listener.port

    @property
    def base_url(self) -> str:
        """Scheme, host and port."""
        return f"https://{self._host}:{self.port}"

    @property
    def introspection_url(self) -> str:
        """What a client configures as `psc.introspection_url`."""
        return self.base_url + INTROSPECT

    def start(self) -> None:
        """Listen (again)."""
        self._listener.up()

    up = start

    async def down(self) -> None:
        """Refuse connections until `up`."""
        await self._listener.down()

    stop = down

    def mint(self, professional: Professional | None = None, *, life: float | None = None) -> str:
        """Return a good access token (see `PscService.mint`)."""
        return self.service.mint(self._clock().timestamp(), professional, life=life)

    def answer(self, web_request: Any, request: PscRequest) -> None:
        """Treat one request as the script says."""
        behaviour = self.script.next(endpoint_of(request.path))
        answer = self._decide(request, behaviour)
        respond(
            self._reactor,
            web_request,
            behaviour,
            answer.status,
            "application/json",
            answer.body,
            answer.headers,
        )

    def _decide(self, request: PscRequest, behaviour: Behaviour) -> PscAnswer:
        if behaviour.kind is Kind.CUT_BEFORE:
            return PscAnswer(200)
        if behaviour.kind is Kind.INACTIVE:
            return PscAnswer(200, {"active": False})
        if behaviour.kind is Kind.HTTP:
            return PscAnswer(behaviour.status, {"error": "simulated"})
        if behaviour.kind in (Kind.ERROR, Kind.FAULT):
            return PscAnswer(400, {"error": behaviour.code or "server_error"})
        if behaviour.kind is Kind.REDIRECT:
            status = behaviour.status if 300 <= behaviour.status < 400 else 307
            return PscAnswer(status, None, (("Location", behaviour.code),))
        answer = self.service.handle(request, self._clock().timestamp())
        if behaviour.kind is Kind.CLAIMS and answer.content is not None:
            return attrs.evolve(answer, content=_altered(answer.content, json.loads(behaviour.code)))
        return answer


def _altered(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with `changes` put over it; None takes a member away."""
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the simulator as a process; prints its port and one access token as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m drimbox.sim.psc", description="Pro Santé Connect et proxy e-Santé simulés."
    )
    parser.add_argument("--certificate", type=Path, required=True, help="certificat du serveur, PEM")
    parser.add_argument("--key", type=Path, required=True, help="clé du serveur, PEM")
    parser.add_argument("--host", default="127.0.0.1", help="adresse d'écoute")
    parser.add_argument("--port", type=int, default=0, help="port d'écoute (0 : au choix du système)")
    parser.add_argument("--client", default="drimbox", help="client_id accepté")
    parser.add_argument(
        "--client-secret-file", type=Path, help="fichier du client_secret accepté (sans lui : « secret »)"
    )
    parser.add_argument("--life", type=float, default=86400.0, help="durée du jeton affiché, en secondes")
    options = parser.parse_args(argv)

    from twisted.internet import reactor as installed

    reactor: Any = installed
    secret = "secret"
    if options.client_secret_file:
        secret = options.client_secret_file.read_text("utf-8").strip()
    psc = PscServer(
        reactor,
        Pair(options.certificate, options.key),
        service=PscService(clients={options.client: secret}),
        host=options.host,
        port=options.port,
    )
    psc.start()
    sys.stdout.write(json.dumps({"port": psc.port, "token": psc.mint(life=options.life)}) + "\n")
    sys.stdout.flush()
    reactor.run()


if __name__ == "__main__":
    main()
