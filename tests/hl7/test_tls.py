"""MLLP over TLS: the simulated RIS and `openssl s_client` at the door, and those who should not get in."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.threads import deferToThread

from drimbox.config import Certificate, Hl7Settings, Hl7TlsSettings, TrustSettings
from drimbox.hl7.mllp import frame
from drimbox.hl7.server import MllpFactory
from drimbox.limits import Why
from drimbox.sim.authority import Pair
from drimbox.sim.ris import Misbehaviour, NoAck, RisTls, build_message, send, send_all
from drimbox.trust.listener import ListenerContext
from drimbox.trust.transport import BulkTLSFactory
from tests.hl7.test_server import Recorder, _now, numbered, pause
from tests.trust.authorities import OpensslAuthority

pytestmark = [
    pytest.mark.requirement("DB.SO.03"),
    pytest.mark.threat("HL7 and MLLP"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command"),
]
CIPHERS = TrustSettings(Path(), Path(), Path()).ciphers
SERVER = "extendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost,DNS:drimbox.hopital"


@attrs.frozen
class Keys:
    """An authority of the hospital, our pair, and RIS of every kind."""

    roots: Path
    ours: Certificate
    renewed: Certificate
    ris: dict[str, Pair | None]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    hospital = OpensslAuthority(folder, "hospital")
    other = OpensslAuthority(folder, "elsewhere")

    def ris(name: str, authority: OpensslAuthority, usage: str) -> Pair:
        made = authority.issue(name, f"extendedKeyUsage={usage}")
        assert made.certificate is not None
        assert made.key is not None
        return Pair(made.certificate, made.key)

    return Keys(
        hospital.path,
        hospital.issue("hl7", SERVER),
        hospital.issue("renewed", SERVER),
        {
            "none": None,
            "good": ris("good", hospital, "clientAuth"),
            "of another authority": ris("stranger", other, "clientAuth"),
            "for servers": ris("server", hospital, "serverAuth"),
        },
    )


class Door:
    """A listener over TLS with what it refused."""

    def __init__(self, keys: Keys, receiver: Any, **options: Any) -> None:
        tls = {
            name: options.pop(name)
            for name in ("client_certificates", "handshake_timeout")
            if name in options
        }
        asked = tls.get("client_certificates", "none") != "none"
        settings = Hl7TlsSettings(keys.ours, client_roots=keys.roots if asked else None, **tls)
        options.setdefault("message_timeout", 5)
        self.settings = Hl7Settings(max_message_bytes=30_000_000, tls=settings, **options)
        self.told: list[Why] = []
        self.context = ListenerContext(settings, CIPHERS)
        self.factory = MllpFactory(
            self.settings, receiver, reactor, _now, refused=lambda address, why: self.told.append(why)
        )
        tls_factory = BulkTLSFactory(self.context, False, self.factory)
        self.listening = reactor.listenTCP(0, tls_factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.port = self.listening.getHost().port

    async def close(self) -> None:
        await self.listening.stopListening()
        await self.factory.drain(5)


def at_a_door(keys: Keys, receiver: Any, body: Callable[[Door], Any], **options: Any) -> Deferred[None]:
    async def run() -> None:
        door = Door(keys, receiver, **options)
        try:
            await body(door)
        finally:
            await door.close()
            assert not door.factory.connections
            assert len(door.factory._doorkeeper) == 0

    return ensureDeferred(run())


async def heard(door: Door, count: int) -> None:
    """Wait until that many refusals were told."""
    for _ in range(1000):
        if len(door.told) >= count:
            return
        await pause(0.01)
    raise AssertionError(door.told)


@pytest_twisted.inlineCallbacks
def test_messages_are_given_to_the_receiver_and_answered_in_order(keys: Keys) -> Any:
    receiver = Recorder()

    async def body(door: Door) -> None:
        tls = RisTls(keys.roots)
        answer = await send("127.0.0.1", door.port, build_message(), 10, tls=tls)
        assert (answer.code, answer.control_id) == ("AA", "015")
        answers = await send_all("127.0.0.1", door.port, numbered(50), 10, tls=tls)
        assert [each.control_id for each in answers] == [str(number) for number in range(50)]
        big = build_message(document=b"x" * 5_000_000)
        for misbehaviour in (None, Misbehaviour.GARBAGE_BEFORE):
            sent = send("127.0.0.1", door.port, big, 20, tls=tls, misbehaviour=misbehaviour)
            assert (await sent).code == "AA"
        assert receiver.received[-1] == (big, "127.0.0.1")
        assert door.told == []

    yield at_a_door(keys, receiver, body)
    assert [raw for raw, _ in receiver.received[1:51]] == numbered(50)


@pytest.mark.parametrize(
    ("policy", "taken"),
    [
        ("none", {"none", "good", "of another authority", "for servers"}),
        ("optional", {"none", "good"}),
        ("required", {"good"}),
    ],
)
@pytest_twisted.inlineCallbacks
def test_who_must_show_a_certificate_and_which(keys: Keys, policy: str, taken: set[str]) -> Any:
    receiver = Recorder()

    async def body(door: Door) -> None:
        found = set()
        for name, pair in keys.ris.items():
            try:
                await send("127.0.0.1", door.port, build_message(), 10, tls=RisTls(keys.roots, pair=pair))
                found.add(name)
            except (NoAck, SSL.Error):
                pass
        assert found == taken
        assert door.told == [Why.HANDSHAKE] * (len(keys.ris) - len(taken))

    yield at_a_door(keys, receiver, body, client_certificates=policy)
    assert len(receiver.received) == len(taken)


def s_client(port: int, keys: Keys, *options: str, send: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", "-verify_return_error"]
    command += ["-CAfile", str(keys.roots), "-verify_hostname", "drimbox.hopital", *options]
    # The answer makes it end: its input stays open until then.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    out = b""
    try:
        process.stdin.write(send)
        process.stdin.flush()
        while not out.endswith(b"\x1c\r") and (byte := process.stdout.read(1)):
            out += byte
    except BrokenPipeError:
        pass
    finally:
        process.kill()
        _, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(command, 0, out, err)


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest_twisted.inlineCallbacks
def test_openssl_s_client_is_answered(keys: Keys, version: str) -> Any:
    pair = keys.ris["good"]
    assert pair is not None
    shown = ("-cert", str(pair.certificate), "-key", str(pair.key))

    async def body(door: Door) -> None:
        message = frame(build_message())
        done = await deferToThread(s_client, door.port, keys, version, *shown, send=message)
        assert b"MSA|AA|015" in done.stdout, done
        done = await deferToThread(s_client, door.port, keys, version, send=message)
        assert b"MSA" not in done.stdout

    yield at_a_door(keys, Recorder(), body, client_certificates="required")


@pytest.mark.peer("openssl")
@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@pytest.mark.parametrize(
    "options",
    [
        ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0"),
    ],
)
@pytest_twisted.inlineCallbacks
def test_old_versions_and_weak_suites_are_refused(keys: Keys, options: tuple[str, ...]) -> Any:
    receiver = Recorder()

    async def body(door: Door) -> None:
        done = await deferToThread(s_client, door.port, keys, *options, send=frame(build_message()))
        assert b"MSA" not in done.stdout
        await heard(door, 1)

    yield at_a_door(keys, receiver, body)
    assert receiver.received == []


@pytest_twisted.inlineCallbacks
def test_mllp_in_clear_is_not_heard_and_a_look_is_no_refusal(keys: Keys) -> Any:
    receiver = Recorder()

    async def body(door: Door) -> None:
        with pytest.raises(NoAck):
            await send("127.0.0.1", door.port, build_message(), 10)
        await heard(door, 1)
        assert door.told == [Why.HANDSHAKE]
        # A balancer that looks whether somebody is there.
        await deferToThread(lambda: socket.create_connection(("127.0.0.1", door.port), 5).close())
        while door.factory.connections:
            await pause(0.01)
        assert door.told == [Why.HANDSHAKE]

    yield at_a_door(keys, receiver, body)
    assert receiver.received == []


@contextlib.contextmanager
def dripping(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), 10) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00")
        yield raw


@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.inlineCallbacks
def test_a_handshake_that_does_not_end_is_cut_however_it_drips(keys: Keys) -> Any:
    def drip(port: int) -> bool:
        with dripping(port) as raw:
            raw.settimeout(0.1)
            for _ in range(100):
                try:
                    raw.sendall(b"\0")
                    if raw.recv(1) == b"":
                        return True
                except TimeoutError:
                    continue
                except OSError:
                    return True
        return False

    async def body(door: Door) -> None:
        assert await deferToThread(drip, door.port)
        await heard(door, 1)
        assert door.told == [Why.UNFINISHED]

    yield at_a_door(keys, Recorder(), body, handshake_timeout=1.0)


@pytest_twisted.inlineCallbacks
def test_a_refused_frame_is_answered_before_the_connection_ends(keys: Keys) -> Any:
    async def body(door: Door) -> None:
        sent = send(
            "127.0.0.1",
            door.port,
            build_message(),
            10,
            tls=RisTls(keys.roots),
            misbehaviour=Misbehaviour.VT_INSIDE,
        )
        assert (await sent).code == "AE"

    yield at_a_door(keys, Recorder(), body)


@pytest_twisted.inlineCallbacks
def test_a_stop_answers_the_message_in_hand(keys: Keys) -> Any:
    receiver = Recorder(wait=True)

    async def body(door: Door) -> None:
        tls = RisTls(keys.roots)
        answer = ensureDeferred(send("127.0.0.1", door.port, build_message(), 20, tls=tls))
        while not receiver.pending:
            await pause(0.01)
        stopped = ensureDeferred(door.factory.drain(20))
        await pause(0.05)
        assert not stopped.called
        receiver.pending[0].callback(None)
        assert (await answer).code == "AA"
        await stopped

    yield at_a_door(keys, receiver, body)


@pytest_twisted.inlineCallbacks
def test_a_peer_that_goes_while_its_message_is_stored_costs_nothing(keys: Keys) -> Any:
    receiver = Recorder(wait=True)

    def leave(port: int) -> None:
        context = ssl.create_default_context(cafile=str(keys.roots))
        with socket.create_connection(("127.0.0.1", port), 10) as raw:
            tls = context.wrap_socket(raw, server_hostname="localhost")
            tls.sendall(frame(build_message()))
            # It says that it is done, and does not wait to hear the same.
            tls.settimeout(0.2)
            with contextlib.suppress(OSError):
                tls.unwrap()

    async def body(door: Door) -> None:
        gone = deferToThread(leave, door.port)
        while not receiver.pending:
            await pause(0.01)
        await gone
        receiver.pending[0].callback(None)
        assert door.told == []

    yield at_a_door(keys, receiver, body)
    assert len(receiver.received) == 1


@pytest_twisted.inlineCallbacks
def test_connections_over_the_limit_are_closed_before_any_handshake(keys: Keys) -> Any:
    receiver = Recorder(wait=True)

    async def body(door: Door) -> None:
        tls = RisTls(keys.roots)
        first = ensureDeferred(send("127.0.0.1", door.port, build_message(), 20, tls=tls))
        while not receiver.pending:
            await pause(0.01)
        with pytest.raises((NoAck, SSL.Error)):
            await send("127.0.0.1", door.port, build_message(), 10, tls=tls)
        assert door.told == [Why.ADDRESS]
        receiver.pending[0].callback(None)
        assert (await first).code == "AA"

    yield at_a_door(keys, receiver, body, max_connections=1, max_connections_per_address=1)


@pytest.mark.requirement("DB.SO.90")
@pytest_twisted.inlineCallbacks
def test_a_reload_shows_another_certificate_to_those_who_come(keys: Keys, tmp_path: Path) -> Any:
    assert keys.ours.certificate is not None
    assert keys.renewed.certificate is not None
    assert keys.ours.key is not None
    assert keys.renewed.key is not None
    own = Certificate(tmp_path / "own.pem", tmp_path / "own.key")
    own.certificate.write_bytes(keys.ours.certificate.read_bytes())  # type: ignore[union-attr]
    own.key.write_bytes(keys.ours.key.read_bytes())  # type: ignore[union-attr]

    def shown(port: int) -> bytes | None:
        context = ssl.create_default_context(cafile=str(keys.roots))
        with socket.create_connection(("127.0.0.1", port), 10) as raw:
            return context.wrap_socket(raw, server_hostname="localhost").getpeercert(binary_form=True)

    async def body(door: Door) -> None:
        before = await deferToThread(shown, door.port)
        own.certificate.write_bytes(keys.renewed.certificate.read_bytes())  # type: ignore[union-attr]
        own.key.write_bytes(keys.renewed.key.read_bytes())  # type: ignore[union-attr]
        assert await deferToThread(shown, door.port) == before
        door.context.reload()
        assert await deferToThread(shown, door.port) != before

    yield at_a_door(attrs.evolve(keys, ours=own), Recorder(), body)
