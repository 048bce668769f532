"""A real Orthanc, with a password: what it says of a study, its files byte for byte, its changes."""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.config import Native
from drimbox.errors import PacsCommunicationError
from drimbox.native.http import basic
from drimbox.native.loading import open_archive
from drimbox.native.orthanc import OrthancStore
from drimbox.native.store import InstanceGone
from drimbox.sim.peers import Orthanc, PeerMissing
from drimbox.sim.studies import SimPatient, make_study

pytestmark = pytest.mark.peer("Orthanc")
USER, PASSWORD = "drimbox", "pâte à choux"
HEADERS = {"Authorization": basic(USER, PASSWORD)}


class Guarded(Orthanc):
    """Orthanc that asks who is there."""

    def load(self, files: Iterable[Path]) -> None:
        for file in files:
            assert self.ask("POST", "/instances", file.read_bytes()) == 200

    def ask(self, method: str, path: str, body: bytes | None = None) -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=20)) as connection:
            connection.request(method, path, body, HEADERS)
            response = connection.getresponse()
            self.said = response.read()
            return response.status

    def remove(self, level: str, uid: str) -> None:
        assert self.ask("POST", "/tools/lookup", uid.encode()) == 200
        (found,) = json.loads(self.said)
        assert self.ask("DELETE", f"/{level}/{found['ID']}") == 200

    def _rest_ready(self) -> bool:
        try:
            return self.ask("GET", "/system") == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    settings = {"AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD}}
    try:
        peer = Guarded(tmp_path_factory.mktemp("orthanc"), settings=settings)
    except PeerMissing as missing:
        pytest.skip(str(missing))
    with peer:
        yield peer


@asynccontextmanager
async def opened(orthanc: Orthanc, folder: Path, password: str = PASSWORD) -> AsyncIterator[Any]:
    secret = folder / "secret"
    secret.write_text(password + "\n", "utf-8")
    settings = Native(
        "A", "orthanc", f"http://127.0.0.1:{orthanc.http_port}", USER, secret, timeout=10, parallel=3
    )
    nobody: Any = None
    archive = open_archive("site1", settings, reactor, deferToThread, nobody)
    try:
        yield archive
    finally:
        await archive.close()


@pytest.mark.requirement("DB.SO.14", "DB.SO.16", "DB.SO.165")
@pytest_twisted.ensureDeferred
async def test_a_study_is_told_as_it_was_made(orthanc: Guarded, tmp_path: Path) -> None:
    patient = SimPatient(ins="279035121518989", name="ÉLÈVE^ZOÉ")
    study = make_study(tmp_path / "study", instances=7, series=2, patient=patient, study_uid="2.25.501")
    orthanc.load(study.files)
    async with opened(orthanc, tmp_path) as archive:
        found = await archive.find_study(study.study_uid)
    made = study.as_model()
    assert found is not None
    ordered = attrs.evolve(made, series=tuple(sorted(made.series, key=lambda each: each.number or 0)))
    assert found == ordered


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_says_so(orthanc: Guarded, tmp_path: Path) -> None:
    async with opened(orthanc, tmp_path, "autre") as archive:
        with pytest.raises(PacsCommunicationError, match="accès refusé"):
            await archive.find_study("2.25.501")


@pytest.mark.requirement("DB.SO.165")
@pytest_twisted.ensureDeferred
async def test_files_are_read_byte_for_byte(orthanc: Guarded, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", instances=5, study_uid="2.25.502")
    orthanc.load(study.files)
    series = study.series[0]
    held = {each.sop_instance_uid: each.path.read_bytes() for each in series.instances}
    async with opened(orthanc, tmp_path) as archive:
        store: OrthancStore = archive._store
        listed = [each async for each in store.instances(study.study_uid, series.series_uid)]
        assert {each.sop_instance_uid for each in listed} == set(held)
        for each in listed:
            assert b"".join([block async for block in store.read(each)]) == held[each.sop_instance_uid]
        wanted = listed[3].sop_instance_uid
        (one,) = [each async for each in store.instances(study.study_uid, series.series_uid, wanted)]
        assert one == listed[3]
        assert [each async for each in store.instances("2.25.5021", series.series_uid)] == []
        orthanc.remove("instances", wanted)
        with pytest.raises(InstanceGone):
            await anext(store.read(one))


@pytest.mark.threat("images of another patient")
@pytest_twisted.ensureDeferred
async def test_one_study_under_two_patients_is_refused(orthanc: Guarded, tmp_path: Path) -> None:
    for number in (1, 2):
        how: dict[str, Any] = {"patient": SimPatient(f"P{number}"), "seed": number}
        study = make_study(tmp_path / str(number), instances=1, study_uid="2.25.503", **how)
        orthanc.load(study.files)
    async with opened(orthanc, tmp_path) as archive:
        with pytest.raises(PacsCommunicationError, match="plusieurs patients"):
            await archive.find_study("2.25.503")


@pytest.mark.requirement("DB.SO.27")
@pytest_twisted.ensureDeferred
async def test_changes_are_told_across_a_restart(orthanc: Guarded, tmp_path: Path) -> None:
    first = make_study(tmp_path / "one", instances=3, study_uid="2.25.504")
    second = make_study(tmp_path / "two", instances=3, study_uid="2.25.505")
    orthanc.load([*first.files[:2], *second.files])
    async with opened(orthanc, tmp_path) as archive:
        begin = await archive.changes(None)
        assert not begin.complete
        quiet = await archive.changes(begin.cursor)
        assert (set(quiet.studies), quiet.cursor, quiet.complete) == (set(), begin.cursor, True)
        marks = [await archive.mark(uid) for uid in ("2.25.504", "2.25.505", "2.25.599")]
        assert marks[2] is None
        orthanc.load(first.files[2:])
    orthanc.stop()
    orthanc.start()
    async with opened(orthanc, tmp_path) as archive:
        added = await archive.changes(quiet.cursor)
        assert (set(added.studies), added.complete) == ({"2.25.504"}, True)
        assert await archive.mark("2.25.504") != marks[0]
        assert await archive.mark("2.25.505") == marks[1]
        orthanc.remove("instances", second.instances[0].sop_instance_uid)
        removed = await archive.changes(added.cursor)
        assert not removed.complete
        assert await archive.mark("2.25.505") != marks[1]
        orthanc.remove("studies", "2.25.505")
        assert not (await archive.changes(removed.cursor)).complete
        assert await archive.mark("2.25.505") is None
