"""What it costs to let a Consumer in: TLS handshakes a second, with every check of an installation.

Figures (`python -m bench --only door`). The revocation list has `Plan.door_revoked` entries, the whitelist
`Plan.door_listed` Consumers; keys are RSA of 2048 bits, as those of the IGC-Santé. Two Consumers knock,
each one connection after the other, which is opened, verified (chain, dates, purpose, revocation) and
closed:
- `door.handshake.rate`, a second, and `door.handshake.cpu`, processor time of the gateway for each;
- `door.asked.*`: the same with a request that every check must let through, whitelist included, and its
  answer (OPTIONS);
- `door.tls12.*`: TLS 1.2 in place of 1.3;
- `door.unlisted.*`: without revocation lists;
- `door.resumed`: connections of those that offered a session (TLS 1.2 and 1.3) that resumed it: none may;
- `door.bare.full`, `door.bare.resumed`: processor time of both sides of a handshake in OpenSSL alone, with
  the same keys: what a resumption would save, were it safe.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs

from bench.gateway import Gateway
from bench.plan import Plan
from bench.processes import cpu_seconds
from bench.program import Program
from bench.results import Results
from drimbox.sim.peers import LOOPBACK, free_port
from drimbox.sim.pki import make_pki

#: Consumers that knock at once, and seconds between the order and the first knock.
_KNOCKERS, _LEAD = 2, 0.5
_ASKED = "OPTIONS /dicom-web-rs/ HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n"


@attrs.frozen
class _Nobody:
    """A PACS that is not asked for anything."""

    ae_title: str = "PACS"
    port: int = attrs.field(factory=free_port)


def measure_door(results: Results, plan: Plan, folder: Path) -> None:
    """Knock at a gateway that has nothing else to do, with revocation lists and without."""
    _bare(results, folder / "bare", plan.door_seconds)
    with _opened(folder / "listed", plan, lists=True) as gateway:
        name = gateway.facts["name"]
        _knocks(results, plan, gateway, "handshake")
        _knocks(results, plan, gateway, "asked", request=_ASKED.format(name))
        _knocks(results, plan, gateway, "tls12", version="1.2")
        resumed = sum(
            _knock(gateway, plan.door_seconds / 4, version=version, offer=True)[1]
            for version in ("1.2", "1.3")
        )
        results.add("door.resumed", resumed, "connections")
    with _opened(folder / "unlisted", plan, lists=False) as gateway:
        _knocks(results, plan, gateway, "unlisted")


@contextmanager
def _opened(folder: Path, plan: Plan, *, lists: bool) -> Iterator[Gateway]:
    """Start a gateway with a long whitelist and, if wanted, a long revocation list, served here."""
    handler = partial(_Quiet, directory=str(folder / "pki"))
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://{LOOPBACK}:{server.server_address[1]}/ACI-EL-ORG.crl"
        extra = {"trust": {"crl_urls": f'["{url}"]'}} if lists else {}
        gateway = Gateway(
            folder,
            _Nobody(),
            port=free_port(),
            pool=["DOOR1"],
            extra=extra,
            listed=plan.door_listed,
            revoked=plan.door_revoked,
        )
        try:
            with gateway:
                yield gateway
        finally:
            server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _knocks(results: Results, plan: Plan, gateway: Gateway, name: str, **how: Any) -> None:
    """Measure one kind of connection."""
    _knock(gateway, plan.door_seconds / 10, **how)
    used = cpu_seconds(gateway.pid)
    count, _, seconds = _knock(gateway, plan.door_seconds, **how)
    results.add(f"door.{name}.rate", count / seconds, "/s")
    results.add(f"door.{name}.cpu", 1000 * (cpu_seconds(gateway.pid) - used) / count, "ms")


def _knock(
    gateway: Gateway, seconds: float, *, request: str = "", version: str = "1.3", offer: bool = False
) -> tuple[int, int, float]:
    """Have Consumers knock; return connections, how many were resumed, and seconds."""
    order = {key: gateway.facts[key] for key in ("port", "name", "roots", "certificate", "key")}
    order |= {"seconds": seconds, "request": request, "version": version, "offer": offer}
    with ExitStack() as stack:
        knockers = [
            stack.enter_context(
                Program("bench.knocker", log=gateway.folder / f"knocker-{n}.log", timeout=seconds + 60)
            )
            for n in range(_KNOCKERS)
        ]
        # Their start is no part of it.
        at = time.monotonic() + _LEAD
        for knocker in knockers:
            knocker.tell(**order, at=at)
        answers = [knocker.read() for knocker in knockers]
    return sum(each["count"] for each in answers), sum(each["resumed"] for each in answers), seconds


# -- OpenSSL alone ------------------------------------------------------------------------------------


def _bare(results: Results, folder: Path, seconds: float) -> None:
    """Measure full and resumed handshakes in memory."""
    pki = make_pki(folder, sites=("db1.349.example", "db1.401.example"), structures={})
    ours, theirs = pki.sites.values()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, pair in ((server, ours), (client, theirs)):
        context.load_verify_locations(pki.roots)
        context.load_cert_chain(pair.certificate, pair.key)
    server.verify_mode = ssl.CERT_REQUIRED
    for resume, name in ((False, "full"), (True, "resumed")):
        session, count, before = None, 0, time.process_time()
        while time.process_time() - before < seconds / 5:
            session, resumed = _handshake(server, client, session if resume else None)
            count += 1
            if resumed != (resume and count > 1):
                raise RuntimeError(f"{name}: not the handshake that was to be measured")
        results.add(f"door.bare.{name}", 1000 * (time.process_time() - before) / count, "ms")


def _handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    """Shake hands in memory; return the session to resume, and whether this one was resumed."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(up, down, server_side=True)
    theirs = client.wrap_bio(down, up, server_hostname="db1.349.example", session=session)
    done = {ours: False, theirs: False}
    while not all(done.values()):
        for side in (theirs, ours):
            try:
                side.do_handshake()
                done[side] = True
            except ssl.SSLWantReadError:
                pass
    ours.write(b"x")
    # The ticket of TLS 1.3 comes with the first bytes.
    theirs.read(1)
    return theirs.session, bool(theirs.session_reused)
