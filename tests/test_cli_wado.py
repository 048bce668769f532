"""`drimbox wado get` as an integrator runs it: against a real gateway, and against sources that lie."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import protocol, reactor, utils

from drimbox.config import WadoSettings
from drimbox.conformance.report import Severity
from drimbox.conformance.wado_request import validate_request
from drimbox.sim.demo import dataset_digests
from drimbox.sim.listening import ServerContext
from drimbox.sim.peers import free_port
from drimbox.sim.pki import Pki, make_pki
from drimbox.sim.studies import make_study
from drimbox.wado.capabilities import CONTENT_TYPE, wadl
from tests.conformance.answers import SERIES, answer, chunked, head, image, part
from tests.integration.hospital import JPEG_LS, Hospital, Served
from tests.integration.waiting import wait
from tests.kos import samples

ROOT = Path(__file__).parent.parent
SITE = "db1.349.example"
CONSUMER = "db2.349.example"
clock: Any = reactor


@attrs.define
class Ran:
    out: str
    err: str
    code: int

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


async def drimbox(*arguments: object) -> Ran:
    """Run the command in a process of its own, this reactor going on."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out, err, code = await utils.getProcessOutputAndValue(
        sys.executable, ["-m", "drimbox.cli", *map(str, arguments)], env=environment
    )
    return Ran(out.decode(), err.decode(), code)


# --- a source that lies -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("wado") / "pki", sites=(SITE, CONSUMER))


class Source(protocol.ServerFactory):
    """Answers every request with the same bytes, then hangs up unless told not to."""

    noisy = False

    def __init__(self, data: bytes, *, close: bool = True) -> None:
        self.data, self.close = data, close
        self.requests: list[bytes] = []

    def buildProtocol(self, addr: object) -> protocol.Protocol:
        return _Connection(self)


class _Connection(protocol.Protocol):
    def __init__(self, source: Source) -> None:
        self._source = source
        self._held = b""

    def dataReceived(self, data: bytes) -> None:
        self._held += data
        if self._held.endswith(b"\r\n\r\n"):
            self._source.requests.append(self._held)
            assert self.transport is not None
            self.transport.write(self._source.data)
            if self._source.close:
                self.transport.loseConnection()


@attrs.define
class Tried:
    ran: Ran
    source: Source


@pytest.fixture
def ask(pki: Pki, tmp_path: Path) -> Callable[..., Any]:
    """Return a coroutine function that runs the command against a source answering given bytes."""
    token = tmp_path / "token"
    token.write_text("eyJh.eyJz.c2ln\n")

    async def run(data: bytes, *arguments: object, close: bool = True, url: bool = False) -> Tried:
        source = Source(data, close=close)
        context = ServerContext(pki.sites[SITE], pki.roots)
        port = clock.listenSSL(0, source, context, interface="127.0.0.1")
        number = port.getHost().port
        where: list[object] = ["--host", SITE, "--port", number, "--study", "2.25.1001", "--series", SERIES]
        if url:
            path = f"/api/source/studies/2.25.1001/series/{SERIES}"
            where = ["--url", f"https://{SITE}:{number}{path}"]
        pair = pki.sites[CONSUMER]
        try:
            ran = await drimbox(
                *("wado", "get", *where, "--connect", f"127.0.0.1:{number}"),
                *("--certificate", pair.certificate, "--key", pair.key, "--roots", pki.roots),
                *("--token-file", token, "--kos", "2.25.9001", *arguments),
            )
        finally:
            await port.stopListening()
        return Tried(ran, source)

    return run


GOOD = answer(part(image(1)), part(image(2)))


@pytest_twisted.ensureDeferred
async def test_a_good_answer_is_stored_under_our_names(ask: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    tried = await ask(GOOD, "--output", folder, "--json", "--accept", "lossy", "--situation", "1999999999")
    assert tried.ran.code == 0, tried.ran
    found = tried.ran.json
    assert (found["status"], found["complete"], found["instances"]) == (200, True, 2)
    assert found["report"]["ok"]
    assert found["first_image_s"] <= found["total_s"]
    assert sorted(path.name for path in folder.iterdir()) == ["000001.dcm", "000002.dcm"]
    for number, stored in enumerate(found["files"], 1):
        content = (folder / stored["name"]).read_bytes()
        assert content == image(number)
        assert stored["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.requirement("DB.CO.84")
@pytest_twisted.ensureDeferred
async def test_what_it_asks_passes_our_own_validator(ask: Callable[..., Any]) -> None:
    for accept, best in (("lossless", ".4.70"), ("lossy", ".4.50"), ("1.2.840.10008.1.2.4.80", ".4.80")):
        tried = await ask(GOOD, "--accept", accept)
        report = validate_request(tried.source.requests[0])
        assert report.ok, report.lines()
        assert report.facts["accept"][0]["transfer_syntax"].endswith(best)
        assert report.facts["kos_uid"] == "2.25.9001"


@pytest_twisted.ensureDeferred
async def test_a_retrieve_url_is_called_whatever_its_path(ask: Callable[..., Any], tmp_path: Path) -> None:
    kos = tmp_path / "kos.dcm"
    kos.write_bytes(samples.build(study=samples.study(samples.series(1, 3))))
    tried = await ask(GOOD, "--kos-file", kos, url=True)
    assert tried.source.requests[0].startswith(b"GET /api/source/studies/2.25.1001/series/")
    assert tried.ran.code == 1
    assert f"1 instance(s) attendue(s) absente(s) : {SERIES}.3" in tried.ran.out


@pytest.mark.parametrize("length", [200, 700, len(GOOD) - 7, len(GOOD) - 1])
@pytest_twisted.ensureDeferred
async def test_a_truncated_answer_fails_and_keeps_only_whole_instances(
    ask: Callable[..., Any], tmp_path: Path, length: int
) -> None:
    folder = tmp_path / "out"
    tried = await ask(GOOD[:length], "--output", folder)
    assert tried.ran.code == 1
    assert "INCOMPLÈTE" in tried.ran.out
    assert "tronquée" in tried.ran.out
    for path in folder.iterdir():
        assert path.suffix == ".dcm"
        assert path.read_bytes() in (image(1), image(2))


@pytest_twisted.ensureDeferred
async def test_a_complete_answer_that_breaks_a_rule_fails(ask: Callable[..., Any]) -> None:
    tried = await ask(answer(part(image(1)), part(image(2), None)))
    assert tried.ran.code == 1
    assert "réponse complète" in tried.ran.out
    assert "partie 2" in tried.ran.out
    assert "[DB.SO.85]" in tried.ran.out


@pytest_twisted.ensureDeferred
async def test_another_series_than_asked_fails(ask: Callable[..., Any]) -> None:
    tried = await ask(answer(part(image(1, series="2.25.77"))))
    assert tried.ran.code == 1
    assert "pas celui de la requête" in tried.ran.out


@pytest_twisted.ensureDeferred
async def test_a_refusal_says_its_code_and_fails(ask: Callable[..., Any]) -> None:
    body = b'{"code":"E1002","title":"KOS d\xc3\xa9publi\xc3\xa9","detail":"x\\u001b[2J"}'
    data = head("410 Gone", "application/problem+json", f"Content-Length: {len(body)}") + body
    tried = await ask(data)
    assert tried.ran.code == 1
    assert "statut 410" in tried.ran.out
    assert "E1002 - KOS dépublié" in tried.ran.out
    assert "\x1b" not in tried.ran.out
    assert "eyJh" not in tried.ran.out + tried.ran.err


@pytest_twisted.ensureDeferred
async def test_a_source_that_stalls(ask: Callable[..., Any]) -> None:
    tried = await ask(GOOD[:-20], "--timeout", "1", "--json", close=False)
    assert tried.ran.code == 1
    assert tried.ran.json["trouble"] == "timeout"


@pytest_twisted.ensureDeferred
async def test_nobody_there(pki: Pki, tmp_path: Path) -> None:
    pair = pki.sites[CONSUMER]
    files = ("--certificate", pair.certificate, "--key", pair.key, "--roots", pki.roots)
    where = ("--host", SITE, "--study", "1.2", "--series", "1.3", "--connect", f"127.0.0.1:{free_port()}")
    ran = await drimbox("wado", "get", *where, *files)
    assert ran.code == 1
    assert "pas de réponse : connexion refusée" in ran.out
    assert "Traceback" not in ran.err


@pytest_twisted.ensureDeferred
async def test_wrong_command_lines(pki: Pki, tmp_path: Path) -> None:
    pair = pki.sites[CONSUMER]
    files = ("--certificate", pair.certificate, "--key", pair.key, "--roots", pki.roots)
    (tmp_path / "file").write_text("x")
    for arguments, code, words in (
        (("--host", SITE), 2, "--study"),
        ((), 2, "--url"),
        (("--url", "http://a/b"), 2, "https"),
        (("--host", SITE, "--study", "1.x", "--series", "1.2"), 2, "UID"),
        (("--host", SITE, "--study", "1.2", "--series", "1.2", "--accept", "png"), 2, "lossless"),
        (("--host", "a b", "--study", "1.2", "--series", "1.2"), 1, "hôte illisible"),
        (("--url", "https://a/b", "--output", tmp_path), 1, "pas vide"),
        (("--url", "https://a/b", "--kos-file", tmp_path / "file"), 1, "illisible"),
    ):
        ran = await drimbox("wado", "get", *files, *arguments)
        assert ran.code == code, (arguments, ran)
        assert words in ran.err
        assert "Traceback" not in ran.err
    wrong = ("--certificate", tmp_path / "file", "--key", pair.key, "--roots", pki.roots)
    ran = await drimbox("wado", "get", *wrong, "--url", f"https://{SITE}/x")
    assert ran.code == 1
    assert "PEM" in ran.err


@pytest.mark.requirement("DB.SO.103")
@pytest_twisted.ensureDeferred
async def test_capabilities_are_asked_without_a_token_and_judged(ask: Callable[..., Any]) -> None:
    document = wadl(WadoSettings())
    more = ("Transfer-Encoding: chunked",)
    good = head("200 OK", CONTENT_TYPE.decode(), *more) + chunked(document)
    tried = await ask(good, "--capabilities")
    assert tried.ran.code == 0, tried.ran
    assert "ressource dicom-web-rs/studies/{studyUID}/series/{seriesUID}" in tried.ran.out
    assert tried.source.requests[0].startswith(b"OPTIONS / HTTP/1.1\r\n")
    assert b"Authorization" not in tried.source.requests[0]
    assert validate_request(tried.source.requests[0]).ok
    for bad, words in (
        (head("200 OK", "text/html", *more) + chunked(document), "application/vnd.sun.wadl+xml"),
        (head("200 OK", CONTENT_TYPE.decode(), *more) + chunked(b"<a"), "WADL illisible"),
        (
            head("200 OK", CONTENT_TYPE.decode(), *more) + chunked(b"<application/>"),
            "ressource de la série",
        ),
        (head("405 X", None, "Content-Length: 0"), "statut 405"),
        (good[:-10], "tronquée"),
    ):
        tried = await ask(bad, "--capabilities")
        assert tried.ran.code == 1
        assert words in tried.ran.out


# --- the real gateway ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    hospital = Hospital(tmp_path_factory.mktemp("hospital"), sites=1)
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture(scope="module")
def served(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    study = make_study(
        tmp_path_factory.mktemp("study"), instances=5, rows=128, columns=128, transfer_syntax=JPEG_LS
    )
    found: Served = wait(hospital.publish(study))
    return found


async def get(hospital: Hospital, served: Served, folder: Path, *arguments: object, **changes: Any) -> Ran:
    stand = hospital.stand
    pair = changes.get("pair", stand.consumer())
    token = folder / "token"
    token.write_text(changes.get("token", stand.token()))
    return await drimbox(
        *("wado", "get", "--host", stand.sites[0], "--port", stand.wado_port),
        *("--connect", f"127.0.0.1:{stand.wado_port}", "--study", served.uid),
        *("--series", served.series(), "--kos", changes.get("kos", served.kos), "--token-file", token),
        *("--certificate", pair.certificate, "--key", pair.key, "--roots", stand.pki.roots),
        *arguments,
    )


@pytest.mark.requirement("DB.SO.32", "DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_a_series_of_the_gateway_is_whole_good_and_unaltered(
    hospital: Hospital, served: Served, tmp_path: Path
) -> None:
    kos = tmp_path / "kos.dcm"
    kos.write_bytes(hospital.database("select data from kos where sop_instance_uid = ?", served.kos)[0][0])
    folder = tmp_path / "images"
    ran = await get(hospital, served, tmp_path, "--json", "--output", folder, "--kos-file", kos)
    assert ran.code == 0, ran
    found = ran.json
    assert (found["complete"], found["instances"]) == (True, 5)
    assert found["report"]["errors"] == found["report"]["warnings"] == 0
    assert found["report"]["facts"]["missing"] == 0
    assert found["transfer_syntaxes"] == {JPEG_LS: 5}
    held = dataset_digests(served.study)
    kept = [path.read_bytes() for path in sorted(folder.iterdir())]
    digests = set()
    for content in kept:
        length = int.from_bytes(content[140:144], "little")
        digests.add(hashlib.sha256(content[144 + length :]).hexdigest())
    assert digests == set(held.values())


@pytest.mark.requirement("DB.SO.38")
@pytest_twisted.ensureDeferred
async def test_refusals_of_the_gateway_are_good_refusals(
    hospital: Hospital, served: Served, tmp_path: Path
) -> None:
    for changes, status, code in (
        ({"kos": served.kos + "9"}, 404, "E1103"),
        ({"token": "unknown"}, 403, "E1104"),
        ({"pair": hospital.stand.consumer("db1.999.mesimagesmedicales.fr")}, 401, "E1102"),
    ):
        ran = await get(hospital, served, tmp_path, "--json", **changes)
        assert ran.code == 1
        found = ran.json
        assert (found["status"], found["problem"]["code"]) == (status, code)
        assert found["report"]["ok"], found["report"]


@pytest_twisted.ensureDeferred
async def test_syntaxes_are_those_asked_for(hospital: Hospital, served: Served, tmp_path: Path) -> None:
    ran = await get(hospital, served, tmp_path, "--accept", f"1.2.840.10008.1.2.1,{JPEG_LS}")
    assert ran.code == 0, ran
    assert "5 image(s)" in ran.out
    assert "première en" in ran.out


@pytest.mark.peer("curl")
@pytest_twisted.ensureDeferred
async def test_captures_made_with_curl_are_judged(
    hospital: Hospital, served: Served, tmp_path: Path
) -> None:
    """As the help says: `curl -i --raw`; without --raw curl has taken the chunks apart."""
    path = tmp_path / "answer.http"
    for arguments, remarks in ((("-i", "--raw"), 0), (("-i",), 2)):
        code, status, _ = await hospital.curl(served, *arguments, output=path)
        assert (code, status) == (0, "200")
        ran = await drimbox("validate", "wado-response", path, "--json")
        assert ran.code == 0, ran
        assert ran.json["facts"]["instances"] == 5
        assert len(ran.json["findings"]) == remarks
    path.write_bytes(path.read_bytes()[:-10])
    assert (await drimbox("validate", "wado-response", path)).code == 1


@pytest.mark.peer("curl")
@pytest_twisted.ensureDeferred
async def test_a_request_of_curl_is_good(pki: Pki) -> None:
    source = Source(GOOD)
    port = clock.listenSSL(0, source, ServerContext(pki.sites[SITE], pki.roots), interface="127.0.0.1")
    number, pair = port.getHost().port, pki.sites[CONSUMER]
    kind = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1; q=0.9'
    command = [
        *("-sS", "--max-time", "20", "--resolve", f"{SITE}:{number}:127.0.0.1", "-o", os.devnull),
        *("--cacert", pki.roots, "--cert", pair.certificate, "--key", pair.key),
        *("-H", f"Accept: {kind}", "-H", "Authorization: Bearer a.b.c", "-H", "KOS-SOPInstanceUID: 2.25.9"),
        f"https://{SITE}:{number}/dicom-web-rs/studies/2.25.1/series/2.25.1.1",
    ]
    try:
        _, error, code = await utils.getProcessOutputAndValue(
            shutil.which("curl") or "curl", [str(each) for each in command], env=dict(os.environ)
        )
    finally:
        await port.stopListening()
    assert code == 0, error
    report = validate_request(source.requests[0])
    assert report.counts[Severity.ERROR] == report.counts[Severity.WARNING] == 0, report.lines()
    assert report.facts["kos_uid"] == "2.25.9"
