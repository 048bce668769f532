"""A batch over syslog TLS: delivered when the repository has read all of it, and at no other time."""

from __future__ import annotations

import fcntl
import socket
import ssl
import subprocess
import termios
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.audit.link import AtnaLink
from drimbox.audit.syslog import SyslogFormat, frame
from drimbox.config import AtnaSettings, Certificate
from drimbox.ports import BatchNotDelivered
from drimbox.sim.peers import free_port
from drimbox.sim.pki import Pair, Pki, make_pki
from drimbox.sim.syslog import Repository, SyslogServer
from tests.audit.test_atna import WHEN
from tests.audit.test_messages import served
from tests.integration.waiting import until

pytestmark = pytest.mark.requirement("DB.CS.96")
FORMAT = SyslogFormat(host="db1.349.example.test", application="DRIMbox", source_id="drimbox-349")


def batch(count: int) -> list[bytes]:
    event = served()
    return [frame(FORMAT.message(n, "a" * 64, WHEN.replace(microsecond=n), event)) for n in range(count)]


def bodies(frames: list[bytes]) -> list[bytes]:
    return [each.partition(b" ")[2] for each in frames]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"), viewers=["vi1.349.example.test"])


@attrs.frozen
class Desk:
    pki: Pki
    server: SyslogServer

    def link(self, **changes: Any) -> AtnaLink:
        ours = next(iter(self.pki.structures.values())).authentication
        values: dict[str, Any] = {
            "host": "localhost",
            "port": self.server.port,
            "roots": self.pki.roots,
            "client": Certificate(ours.certificate, ours.key),
            "timeout": 10.0,
        }
        return AtnaLink(AtnaSettings(**{**values, **changes}), reactor, deferToThread)

    async def refused(self, frames: list[bytes], **changes: Any) -> BatchNotDelivered:
        with pytest.raises(BatchNotDelivered) as caught:
            await self.link(**changes).deliver(frames)
        return caught.value


@pytest_twisted.async_yield_fixture
async def desk(pki: Pki) -> AsyncIterator[Desk]:
    server = SyslogServer(reactor, pki.dmp, pki.roots)
    server.up()
    yield Desk(pki, server)
    await server.down()


@pytest_twisted.ensureDeferred
async def test_a_batch_arrives_whole_and_in_order(desk: Desk) -> None:
    frames = batch(500)
    await desk.link().deliver(frames)
    assert [one.frame for one in desk.server.messages] == bodies(frames)
    assert (desk.server.wrong, desk.server.sessions) == ([], 1)
    await until(lambda: not desk.server.connections, what="the end of the connection")


@pytest_twisted.ensureDeferred
async def test_a_slow_repository_gets_it_too(desk: Desk) -> None:
    desk.server.behaviour = Repository.SLOW
    frames = batch(120)
    await desk.link(timeout=60.0).deliver(frames)
    assert [one.frame for one in desk.server.messages] == bodies(frames)


@pytest.mark.parametrize("behaviour", [Repository.CUT, Repository.RESET_AT_END])
@pytest_twisted.ensureDeferred
async def test_a_session_that_ends_otherwise_is_no_delivery(desk: Desk, behaviour: Repository) -> None:
    desk.server.behaviour = behaviour
    frames = batch(5)
    desk.server.reset_after = len(frames)
    error = await desk.refused(frames)
    assert error.sent
    expected = len(frames) if behaviour is Repository.RESET_AT_END else 0
    assert len(desk.server.messages) == expected


@pytest_twisted.ensureDeferred
async def test_what_never_got_as_far_as_a_message_says_so(desk: Desk, pki: Pki) -> None:
    error = await desk.refused(batch(1), port=free_port())
    assert (error.sent, str(error)) == (False, "localhost : connexion refusée")
    error = await desk.refused(batch(1), roots=pki.market_root)
    assert (error.sent, str(error)) == (
        False,
        "localhost : certificat TLS du serveur refusé (autorité, date ou nom)",
    )
    error = await desk.refused(batch(1), host="127.0.0.2")
    assert not error.sent
    error = await desk.refused(batch(1), roots=Path("/nowhere"))
    assert not error.sent
    assert desk.server.messages == []


@pytest_twisted.ensureDeferred
async def test_a_repository_that_does_not_shake_hands(desk: Desk) -> None:
    await desk.server.down()
    desk.server.behaviour = Repository.MUTE
    desk.server.up()
    error = await desk.refused(batch(1), timeout=2.0)
    assert (error.sent, str(error)) == (False, "localhost : pas de réponse dans le délai")


@pytest_twisted.ensureDeferred
async def test_a_certificate_of_ours_that_the_repository_does_not_know(desk: Desk, pki: Pki) -> None:
    """In TLS 1.3 we learn it after our handshake is over: nothing may count as delivered."""
    stranger = pki.viewers[next(iter(pki.viewers))]
    client = Certificate(stranger.certificate, stranger.key)
    await desk.refused(batch(2), client=client)
    assert desk.server.messages == []


# --- third parties ----------------------------------------------------------------------------------


@pytest.fixture
def plain_server(pki: Pki) -> Iterator[Callable[[str], int]]:
    """Python's TLS in a thread: "closes" once it has read all, "stays" open, "quits" before, is "deaf".

    Or it says goodbye in TLS, and "lingers".
    """
    over = threading.Event()
    threads: list[threading.Thread] = []

    def start(way: str) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.dmp.certificate, pki.dmp.key)
        context.load_verify_locations(pki.roots)
        context.verify_mode = ssl.CERT_REQUIRED
        listening = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with listening, listening.accept()[0] as plain:
                secured = context.wrap_socket(plain, server_side=True)
                while way != "deaf" and secured.recv(65536) and way != "quits":
                    pass
                if way == "lingers":
                    secured = secured.unwrap()
                if way in ("stays", "deaf", "lingers"):
                    over.wait(60)
                # No `close_notify` in answer, only the end of file.
                secured.close()

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        port: int = listening.getsockname()[1]
        return port

    yield start
    over.set()
    for thread in threads:
        thread.join(60)


@pytest.mark.threat("audit events kept from the repository, or removed from the trail")
@pytest_twisted.ensureDeferred
async def test_an_end_of_file_without_goodbye_is_a_receipt_only_by_configuration(
    desk: Desk, plain_server: Callable[[str], int]
) -> None:
    await desk.link(port=plain_server("closes"), require_close_notify=False).deliver(batch(300))
    error = await desk.refused(batch(3), port=plain_server("closes"))
    assert (error.sent, str(error)) == (True, "localhost : connexion fermée sans close_notify")


@pytest_twisted.ensureDeferred
async def test_one_that_says_goodbye_and_lingers_has_had_everything(
    desk: Desk, plain_server: Callable[[str], int]
) -> None:
    await desk.link(port=plain_server("lingers"), timeout=12.0).deliver(batch(3))


@pytest_twisted.ensureDeferred
async def test_a_connection_that_stays_open_is_none(desk: Desk, plain_server: Callable[[str], int]) -> None:
    error = await desk.refused(batch(3), port=plain_server("stays"), timeout=3.0)
    assert (error.sent, str(error)) == (True, "localhost : ne ferme pas la connexion")


@pytest_twisted.ensureDeferred
async def test_one_that_reads_nothing_is_waited_for_no_longer_than_configured(
    desk: Desk, plain_server: Callable[[str], int]
) -> None:
    error = await desk.refused(batch(3), port=plain_server("deaf"), timeout=3.0)
    assert (error.sent, str(error)) == (True, "localhost : ne ferme pas la connexion")
    error = await desk.refused(batch(9000), port=plain_server("deaf"), timeout=5.0)
    assert (error.sent, str(error)) == (True, "localhost : ne lit pas dans le délai")


@pytest.mark.threat("audit events kept from the repository, or removed from the trail")
@pytest_twisted.ensureDeferred
async def test_one_that_closes_before_it_has_read_all_is_found_out(
    desk: Desk, plain_server: Callable[[str], int]
) -> None:
    assert (await desk.refused(batch(100), port=plain_server("quits"))).sent


@pytest.mark.threat("audit events kept from the repository, or removed from the trail")
@pytest_twisted.ensureDeferred
async def test_one_that_stops_and_says_goodbye_without_having_read_is_found_out(
    desk: Desk, pki: Pki
) -> None:
    """A restart of the repository: its goodbye crosses ours, and what its system holds is thrown away."""
    listening = socket.create_server(("127.0.0.1", 0))
    frames = batch(3)

    def serve() -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.use_certificate_chain_file(str(pki.dmp.certificate))
        context.use_privatekey_file(str(pki.dmp.key))
        context.load_verify_locations(str(pki.roots))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        with listening, listening.accept()[0] as plain:
            secured = SSL.Connection(context, plain)
            secured.set_accept_state()
            secured.do_handshake()
            before, now = -1, 0
            while now < sum(map(len, frames)) or now != before:
                threading.Event().wait(0.2)
                before, now = now, int.from_bytes(fcntl.ioctl(plain, termios.FIONREAD, bytes(4)), "little")
            secured.shutdown()
            # It takes a moment to end, and its system ends the connection then.
            threading.Event().wait(1.0)

    serving = deferToThread(serve)
    error = await desk.refused(frames, port=listening.getsockname()[1])
    await serving
    assert error.sent


@pytest_twisted.ensureDeferred
async def test_openssl_gets_every_byte(desk: Desk, pki: Pki, tmp_path: Path) -> None:
    port, pair = free_port(), pki.dmp
    process = await deferToThread(_s_server, port, pair, pki.roots, tmp_path)
    frames = batch(200)
    try:
        await desk.link(port=port).deliver(frames)
    finally:
        await deferToThread(process.wait, 30)
    assert (tmp_path / "received").read_bytes() == b"".join(frames)


def _s_server(port: int, pair: Pair, roots: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-naccept", "1", "-quiet"]
    command += ["-cert", str(pair.certificate), "-key", str(pair.key), "-cert_chain", str(pair.certificate)]
    command += ["-CAfile", str(roots), "-Verify", "5", "-verify_return_error"]
    with (folder / "received").open("wb") as out, (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=log)
    for _ in range(200):
        # Without connecting: it takes one connection and ends.
        with Path("/proc/net/tcp").open() as lines:
            if any(f":{port:04X} 00000000:0000 0A" in line for line in lines):
                return process
        threading.Event().wait(0.05)
    process.kill()
    raise TimeoutError((folder / "log").read_text())
