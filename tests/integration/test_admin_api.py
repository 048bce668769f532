"""The administration API of a running gateway: every act by every role, its trace, and its shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.backup import restoring
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.statements import DOCUMENTS
from drimbox.web.routes import OPEN, ROUTES
from tests.integration.account_stand import AccountStand, World
from tests.integration.feed_stand import POOL, FeedStand, Studies
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.CS.06", "DB.CS.10", "DB.SO.21", "DB.SO.24")

JSON = "application/json"


class ApiStand(AccountStand, FeedStand):
    """A gateway that asks who calls, and has done some work."""


@attrs.define
class ApiWorld(World):
    stand: ApiStand
    pacs: SimulatedPacs
    study: str

    async def ask(self, method: str, path: str, name: str = "anne", body: Any = None) -> tuple[int, Any]:
        """Call a route as an account, "" for nobody; return status and JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        status, content = await self.stand.post(method, path, name, data)
        return status, json.loads(content)

    async def over(self, path: str, number: int) -> dict[str, Any]:
        """Wait until a long work has ended; return it."""

        async def ended() -> Any:
            _, answer = await self.ask("GET", path)
            job = answer["job"]
            assert job["number"] == number
            return job if not job["running"] else None

        job: dict[str, Any] = await until(ended, seconds=120, what=f"the end of {path}")
        return job


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiWorld]:
    folder = tmp_path_factory.mktemp("api")
    backups = folder / "backups"
    backups.mkdir()
    pacs = SimulatedPacs("PACS")
    pacs.start()
    study = Studies(folder / "studies").new(pacs)
    keys = {"speedtest": f'{{ study = "{study.study_uid}" }}'}
    stand = ApiStand(
        folder / "stand",
        [PacsAddress("PACS", pacs.port, POOL, site=keys)],
        extra={
            "backup": {"folder": f'"{backups}"', "keep": "3"},
            "homologation": {"enabled": "true"},
            # Nobody listens there: a test is sent, and fails.
            "notifications.webhook": {"url": '"https://localhost:1/"', "timeout": "5"},
        },
    )
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())

    async def work() -> None:
        await stand.report(study)
        await stand.published_one(study)

    wait(work())
    yield ApiWorld(stand, pacs, study.study_uid)
    wait(stand.stop())
    pacs.stop()


def acts(folder: Path) -> list[tuple[str, str, dict[str, Any], str]]:
    """Return every POST: route, path, body, what the trail says of it; in an order that can be done."""
    site, here = {"site": "site1"}, str(folder)
    walk = {**site, "kind": "resync", "dry_run": True}
    return [
        ("/whitelist/refresh", "/whitelist/refresh", {}, "Récupération de la liste blanche"),
        ("/certificates/reload", "/certificates/reload", {}, "Rechargement des certificats TLS et"),
        ("/walks", "/walks", walk, "Resynchronisation : lancement à blanc"),
        ("/walks/{number}/stop", "/walks/1/stop", {}, "Resynchronisation : arrêt"),
        ("/walks/{number}/confirm", "/walks/1/confirm", {}, "Resynchronisation : retraits confirmés"),
        ("/walks/{number}/abandon", "/walks/1/abandon", {}, "Resynchronisation : abandon"),
        ("/archive/export", "/archive/export", {"folder": here, **site}, "Export de l'archive XDM"),
        (
            "/archive/import",
            "/archive/import",
            {"paths": [here], **site},
            "Chargement d'une archive",
        ),
        ("/speedtest/{site}", "/speedtest/site1", {}, "Test de débit du PACS"),
        ("/doctor", "/doctor", {}, "Examen des liaisons"),
        ("/homologation/load", "/homologation/load", {"paths": [here]}, "Chargement de KOS de test"),
        ("/homologation/clear", "/homologation/clear", {}, "Effacement des KOS de test"),
        ("/notices/test", "/notices/test", {}, "Essai d'envoi des avis"),
        ("/notices/{id}/acknowledge", "/notices/1/acknowledge", {}, "Acquittement d'un avis par anne"),
        ("/queues/{queue}/retry", "/queues/inbox/retry", {"state": "failed"}, "Rejeu des lignes de file"),
        ("/queues/{queue}/{id}/retry", "/queues/inbox/1/retry", {}, "Rejeu d'une ligne de file"),
        ("/queues/{queue}/{id}/raw", "/queues/inbox/1/raw", {}, "Contenu d'une ligne de file extrait"),
        ("/queues/{queue}/{id}/drop", "/queues/inbox/9/drop", {"reason": "essai"}, "Abandon d'une ligne"),
        ("/audit/verification", "/audit/verification", {}, "Vérification du journal d'audit"),
        ("/backup", "/backup", {}, "Sauvegarde vers"),
        ("/backup/check", "/backup/check", {"file": "/absent"}, "Vérification d'une sauvegarde (absent)"),
    ]


@pytest_twisted.ensureDeferred
async def test_every_act_is_the_operators_and_leaves_their_name(world: ApiWorld, tmp_path: Path) -> None:
    done = acts(tmp_path)
    assert {template for template, *_ in done} == {each.path for each in ROUTES if each.method == "POST"}
    before = len(world.audited())
    for _, path, body, _ in done:
        for name, status in (("", 401), ("aude", 403)):
            answer = await world.ask("POST", path, name, body)
            assert answer[0] == status, (path, name, answer)
            assert answer[1]["error"]["status"] == status
            assert re.search("attendu|rôle", answer[1]["error"]["detail"]), answer
    # Whoever may not has done nothing.
    assert not [payload for payload in world.audited()[before:] if any(each[3] in payload for each in done)]
    for _, path, body, action in done:
        job_path = "/archive" if path.startswith(("/archive", "/homologation/load")) else path
        status, content = await world.stand.post("POST", path, "anne", json.dumps(body).encode())
        assert status in (200, 202, 404, 409), (path, content)
        told = [payload for payload in world.audited()[before:] if action in payload]
        assert told, (path, status, content)
        assert all('"anne"' in payload for payload in told), path
        # Written before it is done; what could not be done is said to be so.
        events = [json.loads(payload)["event"] for payload in told]
        assert [event["outcome"] for event in events] == ([0] if status < 400 else [0, 8]), (path, told)
        if status >= 400:
            why = json.loads(content)["error"]["detail"]
            assert events[-1]["outcome_description"].endswith(why), told
        if status == 202 and "job" in json.loads(content):
            job_path = "/backup" if path.startswith("/backup") else job_path
            await world.over(job_path, json.loads(content)["job"])


@pytest_twisted.ensureDeferred
async def test_a_backup_is_made_listed_and_checked(world: ApiWorld) -> None:
    status, begun = await world.ask("POST", "/backup", body={})
    assert status == 202
    assert (await world.ask("POST", "/backup", body={}))[0] == 409
    job = await world.over("/backup", begun["job"])
    assert (job["error"], job["done"], job["stage"]) == ("", 4, "")
    made = job["result"]
    assert made["secrets"] is False
    assert isinstance(made["members"], int)
    status, listed = await world.ask("GET", "/backup/files", "aude")
    assert status == 200
    newest = listed["files"][0]
    assert (newest["file"], newest["size"], newest["sealed"]) == (made["file"], made["size"], False)

    async def shown() -> bool:
        _, text = await world.stand.post("GET", "/metrics", "aude", b"")
        (seconds,) = re.findall(rb"^drimbox_backup_made_seconds (\S+)$", text, re.MULTILINE)
        return float(seconds) == datetime.fromisoformat(newest["made_at"]).timestamp()

    await until(shown, what="the age of the backup in the metrics")
    # What was made can be restored; and the route says so too.
    assert restoring.check_only(Path(made["file"]), None).audit_hash == made["audit_hash"]
    _, begun = await world.ask("POST", "/backup/check", body={"file": made["file"]})
    job = await world.over("/backup", begun["job"])
    assert (job["error"], job["result"]["audit_hash"]) == ("", made["audit_hash"])
    damaged = Path(made["file"]).with_name("abimee.tar.gz")
    damaged.write_bytes(Path(made["file"]).read_bytes()[:-2000])
    _, begun = await world.ask("POST", "/backup/check", body={"file": str(damaged)})
    job = await world.over("/backup", begun["job"])
    assert "n'est pas une sauvegarde lisible" in job["error"]
    assert job["result"] is None
    # Nothing is left of the work.
    assert [path.name for path in (world.stand.folder / "state").glob("*erif*")] == []
    assert [path.name for path in (world.stand.folder / "state").glob("sauvegarde-*")] == []


@pytest_twisted.ensureDeferred
async def test_a_sealed_backup_needs_its_key_and_bad_wishes_are_refused(
    world: ApiWorld, tmp_path: Path
) -> None:
    from drimbox.backup.sealing import new_identity

    secret, public = new_identity()
    body = {"folder": str(tmp_path), "recipients": [public], "keep": 1}
    _, begun = await world.ask("POST", "/backup", body=body)
    job = await world.over("/backup", begun["job"])
    assert (job["error"], job["result"]["secrets"]) == ("", True)
    sealed = job["result"]["file"]
    _, begun = await world.ask("POST", "/backup/check", body={"file": sealed})
    assert "chiffrée" in (await world.over("/backup", begun["job"]))["error"]
    identity = tmp_path / "identity"
    identity.write_text(secret)
    assert restoring.check_only(Path(sealed), identity).secrets
    for bad in (
        {"folder": "relatif"},
        {"folder": 3},
        {"recipients": ["AGE-SECRET-KEY-1"]},
        {"recipients": "age1"},
        {"keep": 0},
        {"keep": True},
    ):
        assert (await world.ask("POST", "/backup", body=bad))[0] == 400, bad
    _, begun = await world.ask("POST", "/backup", body={"folder": "/absent"})
    assert "/absent" in (await world.over("/backup", begun["job"]))["error"]
    status, answer = await world.ask("GET", "/backup/files?folder=/absent", "aude")
    assert (status, "lecture impossible" in answer["error"]["detail"]) == (409, True)


@pytest_twisted.ensureDeferred
async def test_the_trail_is_verified_and_a_false_link_is_told(world: ApiWorld) -> None:
    _, begun = await world.ask("POST", "/audit/verification", body={})
    whole = (await world.over("/audit/verification", begun["job"]))["result"]
    assert (whole["intact"], whole["fault"]) == (True, None)
    assert whole["checked"] > 0
    number = whole["head"].partition(":")[0]
    known = {"known": f"{number}:{'0' * 64}"}
    _, begun = await world.ask("POST", "/audit/verification", body=known)
    false = (await world.over("/audit/verification", begun["job"]))["result"]
    assert false["intact"] is False
    assert (await world.ask("POST", "/audit/verification", body={"known": "hier"}))[0] == 400


@pytest.mark.requirement("DB.SO.05", "DB.SO.183")
@pytest_twisted.ensureDeferred
async def test_a_site_says_what_it_is_and_whether_its_pacs_answered(world: ApiWorld) -> None:
    _, answer = await world.ask("GET", "/sites", "aude")
    (site,) = answer["sites"]
    assert site["reach"]["state"] == "answers"
    assert site["structures"][0]["kind"] == "FINESS"
    assert set(site["pool"]["ae_titles"]) == set(POOL)
    text = json.dumps(answer)
    assert "secret" not in text
    assert str(world.stand.pki.folder) not in text
    world.pacs.stop()
    try:
        await world.stand.report("1.2.3.4.5")

        async def silent() -> bool:
            _, answer = await world.ask("GET", "/sites", "aude")
            reach = answer["sites"][0]["reach"]
            return bool(reach["state"] == "silent" and reach["failed"] and reach["detail"])

        await until(silent, what="the PACS known as silent")
        code, text = await world.drimbox("sites")
        assert code == 0
        assert "NE RÉPOND PAS" in text
    finally:
        world.pacs.start()


@pytest.mark.requirement("DB.CS.160")
@pytest_twisted.ensureDeferred
async def test_the_document_shows_what_is_answered(world: ApiWorld) -> None:
    _, begun = await world.ask("POST", "/walks", body={"site": "site1", "kind": "resync", "dry_run": True})
    number = begun["walk"]

    async def judged() -> bool:
        _, walk = await world.ask("GET", f"/walks/{number}")
        return bool(not walk["open"])

    await until(judged, seconds=60, what="the end of the walk")
    given = {"queue": "inbox", "id": "1", "number": str(number), "site": "site1"}
    shown = shapes()
    assert {f"{each.method} {each.path}" for each in ROUTES} >= set(shown)
    missing = {
        f"GET {each.path}" for each in ROUTES if each.method == "GET" and each.path != "/metrics"
    } - set(shown)
    assert missing == {"GET /walks/{number}", "GET /speedtest/results"}
    for route, shape in shown.items():
        method, template = route.split()
        if method == "GET":
            path = re.sub(r"\{([a-z]+)\}", lambda found: given[found[1]], template)
            status, answer = await world.ask("GET", path)
            assert status == 200, (route, answer)
            compare(shape, answer, route)


def shapes() -> dict[str, Any]:
    """Return the examples of the document, by route."""
    text = (DOCUMENTS / "admin-api.md").read_text("utf-8")
    section = r"^### `([A-Z]+ /[^`]*)`\n(?:(?!###|```)[^\n]*\n)*```json\n(.*?)```"
    found = re.findall(section, text, re.MULTILINE | re.DOTALL)
    return {route: json.loads(example) for route, example in found}


def compare(shape: Any, answer: Any, where: str) -> None:
    """Hold an answer against an example: the same keys, as deep as both go."""
    if isinstance(shape, dict) and isinstance(answer, dict):
        any_key = next((value for key, value in shape.items() if key.startswith("<")), None)
        if any_key is None:
            assert set(answer) == set(shape), where
        for key, value in answer.items():
            compare(any_key if any_key is not None else shape[key], value, f"{where} {key}")
    elif isinstance(shape, list) and isinstance(answer, list):
        for value in answer[:1] if shape else ():
            compare(shape[0], value, where)
    else:
        # Null is for what is not known yet.
        assert shape is None or answer is None or type(shape) is type(answer), (where, shape, answer)


@pytest.mark.threat("a foreign page on the loop")
@pytest_twisted.ensureDeferred
async def test_nobody_gets_further_by_route_method_or_body(world: ApiWorld) -> None:
    stand = world.stand
    assert (await stand.post("DELETE", "/status", "anne", b""))[0] == 405
    assert (await stand.post("POST", "/status", "anne", b"{}"))[0] == 405
    assert (await stand.post("GET", "/absent", "aude", b""))[0] == 404
    # What there is is told to nobody who has no account.
    for path in ("/absent", "/status", "/backup"):
        assert (await stand.post("GET", path, "", b""))[0] == 401, path
    for path in OPEN:
        assert (await stand.post("GET", path, "", b""))[0] == 200, path
    assert (await stand.post("POST", "/backup", "anne", b"x" * (64 * 1024 + 1)))[0] == 413
    assert (await stand.post("POST", "/backup", "anne", b"{}", content_type="text/plain"))[0] == 415
    for headers in ({"origin": "null"}, {"origin": f"https://localhost:{stand.admin_port}"}):
        assert (await stand.post("POST", "/backup", "anne", b"{}", **headers))[0] == 403
