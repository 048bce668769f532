"""The simulated DMP as a process, spoken to by curl over mutual TLS, misbehaving on demand."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from drimbox.sim.pki import Pair, Pki
from tests.sim.dmp_requests import STRUCTURE, HttpRequest, Maker
from tests.sim.processes import Curled, curl, simulator

pytestmark = [
    pytest.mark.skipif(
        shutil.which("curl") is None or shutil.which("xmlsec1") is None, reason="curl or xmlsec1 is missing"
    ),
    pytest.mark.peer("curl"),
]

GET = "5c4f972b-d56b-40ac-a5fc-c8ca9b40b9d4"


@attrs.frozen
class Running:
    """A DMP process and how to talk to it."""

    pki: Pki
    maker: Maker
    folder: Path
    ports: dict[str, int]

    def send(
        self, request: HttpRequest, *options: str, pair: Pair | None = None, bare: bool = False
    ) -> Curled:
        own = self.pki.structures[STRUCTURE].authentication
        return curl(
            f"https://localhost:{self.ports['port']}{request.path}",
            roots=self.pki.roots,
            folder=self.folder,
            pair=None if bare else pair or own,
            headers=[f"Content-Type: {request.content_type}"],
            data=request.body,
            options=options,
        )

    def behave(self, **behaviour: Any) -> str:
        made = urllib.request.Request(
            f"http://127.0.0.1:{self.ports['control']}/behaviour", json.dumps(behaviour).encode()
        )
        with urllib.request.urlopen(made, timeout=5) as answer:
            return str(answer.read().decode())

    def state(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.ports['control']}/state"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return dict(json.load(answer))


def _options(pki: Pki, journal: Path) -> list[object]:
    return [
        *("--certificate", pki.dmp.certificate, "--key", pki.dmp.key),
        *("--roots", pki.roots, "--crls", pki.crls, "--control-port", 0, "--journal", journal),
    ]


def real_time() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def dmp(sim_pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("dmp")
    maker = Maker(sim_pki, folder, sim_pki.structures[STRUCTURE].signature, clock=real_time)
    with simulator("drimbox.sim.dmp", *_options(sim_pki, folder / "journal")) as (_, ports):
        yield Running(sim_pki, maker, folder, ports)


@pytest.fixture
def number(_counter: Iterator[int] = iter(range(1, 1000))) -> int:  # noqa: B008
    """A number no other test of this module used: the record is shared."""
    return next(_counter)


def publication(dmp: Running, number: int) -> HttpRequest:
    return dmp.maker.publication(
        kos_uid=f"2.999.40.{number}", set_uid=f"2.999.41.{number}", signature_uid=f"2.999.42.{number}"
    )


def holds(dmp: Running, number: int) -> bool:
    return f"2.999.40.{number}" in {document["uniqueId"] for document in dmp.state()["documents"]}


def test_publish_and_ask(dmp: Running, number: int) -> None:
    answer = dmp.send(publication(dmp, number))
    assert (answer.code, answer.status) == (0, 200)
    assert b"ResponseStatusType:Success" in answer.body
    assert 'type="application/xop+xml"' in answer.head
    query = dmp.maker.query(GET, "ObjectRef", ("$XDSDocumentEntryUniqueId", f"('2.999.40.{number}')"))
    assert b"ObjectRef id=" in dmp.send(query).body
    last = dmp.state()["exchanges"][-2]
    assert (last["transaction"], last["outcome"], last["warnings"]) == ("TD2.1", "success", [])
    assert f"OU={STRUCTURE}" in last["client"]


@pytest.mark.requirement("DB.SO.111")
def test_tls_client_certificates(dmp: Running, sim_pki: Pki) -> None:
    request = dmp.maker.existence()
    assert dmp.send(request, bare=True).status == 0
    bad = sim_pki.issue_org(STRUCTURE, "auth", name="tls-stranger", stranger=True)
    assert dmp.send(request, pair=bad).status == 0
    expired = sim_pki.issue_org(STRUCTURE, "auth", name="tls-expired", expired=True)
    assert dmp.send(request, pair=expired).status == 0
    # A signature certificate has not the usage of a TLS client.
    assert dmp.send(request, pair=sim_pki.structures[STRUCTURE].signature).status == 0
    assert dmp.send(request, "--tls-max", "1.2").status == 200
    assert dmp.send(dmp.maker.existence(), "--tls-max", "1.1").status == 0


def test_plain_http_rules(dmp: Running) -> None:
    request = dmp.maker.existence()
    assert dmp.send(HttpRequest("/other", request.content_type, request.body)).status == 404
    assert dmp.send(request, "-X", "PUT").status == 405


@pytest.mark.parametrize(
    ("behaviour", "check", "registered"),
    [
        ({"kind": "error", "code": "XDSRegistryBusy"}, lambda a: b"XDSRegistryBusy" in a.body, False),
        ({"kind": "fault", "code": "wsse:FailedCheck"}, lambda a: a.status == 500, False),
        ({"kind": "http", "status": 503}, lambda a: a.status == 503, False),
        ({"kind": "cut-before"}, lambda a: a.code in (52, 56), False),
        ({"kind": "cut-after"}, lambda a: a.code in (52, 56), True),
        ({"kind": "cut-answer"}, lambda a: a.code in (18, 56) and a.body, True),
        ({"kind": "garbage"}, lambda a: a.status == 200 and b"garbage" in a.body, True),
        ({"kind": "silent"}, lambda a: a.code == 28, True),
        ({"kind": "normal", "seconds": 0.3}, lambda a: b"Success" in a.body, True),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else None,
)
def test_misbehaviours_hit_one_publication(
    dmp: Running,
    number: int,
    behaviour: dict[str, Any],
    check: Callable[[Curled], object],
    registered: bool,
) -> None:
    assert dmp.behave(**behaviour, times=1, transaction="TD2.1") == "ok\n"
    assert dmp.send(dmp.maker.existence()).status == 200  # not its turn
    answer = dmp.send(publication(dmp, number), "-m", "1")
    assert check(answer), answer
    assert holds(dmp, number) is registered
    again = dmp.send(publication(dmp, number))
    assert (b"XDSDuplicateUniqueIdInRegistry" if registered else b"Success") in again.body


def test_down_and_up_on_the_same_port(dmp: Running) -> None:
    dmp.behave(kind="down")
    assert dmp.send(dmp.maker.existence()).code == 7
    dmp.behave(kind="up")
    assert dmp.send(dmp.maker.existence()).status == 200


def test_control_refuses_nonsense(dmp: Running) -> None:
    for bad in ({"kind": "explode"}, {"kind": "slow", "x": 1}, {"kind": "http", "status": "a"}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            dmp.behave(**bad)
        assert refused.value.code == 400


def test_killed_after_registering_it_still_knows(sim_pki: Pki, tmp_path: Path, number: int) -> None:
    maker = Maker(sim_pki, tmp_path, sim_pki.structures[STRUCTURE].signature, clock=real_time)
    options = _options(sim_pki, tmp_path / "journal")
    with simulator("drimbox.sim.dmp", *options) as (process, ports):
        running = Running(sim_pki, maker, tmp_path, ports)
        running.behave(kind="cut-after", times=1)
        assert running.send(publication(running, number)).status == 0
        process.kill()
    with simulator("drimbox.sim.dmp", *options) as (_, ports):
        running = Running(sim_pki, maker, tmp_path, ports)
        assert holds(running, number)
        assert b"XDSDuplicateUniqueIdInRegistry" in running.send(publication(running, number)).body
