"""The table of errors (interfaces.md 6.4), row by row over real sockets.

Each refusal has its status and its code, French words in an `application/problem+json`, nothing of the
patient in it, in its headers or in the gateway's log, and one audit record of the shape of requirements.md
3.8.3 (DB.SO.46, DB.SO.47). What a PACS or a client does to provoke it is in `ROWS`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.sim.behaviour import Behaviour as ServerBehaviour
from drimbox.sim.behaviour import Kind
from drimbox.sim.consumer import FetchResult
from drimbox.sim.stand import CONSUMER, STRANGER
from drimbox.sim.studies import SimPatient, make_study
from drimbox.sim.whitelist import ListedDomain, make_whitelist
from tests.integration.hospital import ACCEPT, JPEG_LS, Hospital, Served, behave
from tests.integration.test_delivery_options import strict
from tests.integration.waiting import until, wait

__all__ = ["strict"]

#: A patient whose every word is unlike anything else that may be said.
SECRET = SimPatient(id="IPPSECRET42", name="CONFIDENTIEL^MAUD", birth_date="19610817")
#: What the report, the KOS and the images say of him, and of the one of the simulated reports.
PRIVATE = (b"SECRET42", b"CONFIDENTIEL", b"19610817", b"284070100499094", b"EXEMPLE", b"CLAIRE", b"P000123")


@attrs.frozen
class Row:
    """One line of the table: how to provoke it, and what must come."""

    status: int
    code: str
    title: str
    provoke: Callable[[Hospital, Served], Any]
    #: Headers that must be there, and how their value begins.
    headers: tuple[tuple[str, str], ...] = ()
    #: True when the request was well formed and the use-case judged it: study and professional are known.
    judged: bool = True


@asynccontextmanager
async def asking(hospital: Hospital, served: Served, **options: Any) -> AsyncIterator[FetchResult]:
    yield await hospital.fetch(served, **options)


@asynccontextmanager
async def with_pacs(hospital: Hospital, served: Served, **how: Any) -> AsyncIterator[FetchResult]:
    hospital.pacs[served.site].behaviour = behave(**how)
    yield await hospital.fetch(served)


@asynccontextmanager
async def depublished(hospital: Hospital, served: Served) -> AsyncIterator[FetchResult]:
    database = hospital.folder / "stand" / "state" / "drimbox.db"

    def mark(state: str) -> None:
        with closing(sqlite3.connect(database, timeout=10)) as connection, connection:
            query = "update kos set state = ? where sop_instance_uid = ?"
            connection.execute(query, (state, served.kos))

    state = str(hospital.database("select state from kos where sop_instance_uid = ?", served.kos)[0][0])
    mark("depublished")
    try:
        yield await hospital.fetch(served)
    finally:
        mark(state)


@asynccontextmanager
async def without_introspection(
    hospital: Hospital, served: Served, *, silent: bool
) -> AsyncIterator[FetchResult]:
    token = hospital.stand.token()
    if silent:
        hospital.stand.psc.script.default = ServerBehaviour(Kind.SILENT)
    else:
        await hospital.stand.psc.down()
    try:
        yield await hospital.fetch(served, token=token)
    finally:
        hospital.stand.psc.script.default = ServerBehaviour()
        if not silent:
            hospital.stand.psc.up()


@asynccontextmanager
async def from_a_stranger(hospital: Hospital, served: Served) -> AsyncIterator[FetchResult]:
    yield await hospital.fetch(served, certificate=hospital.stand.consumer(STRANGER))


@asynccontextmanager
async def through_the_viewer(hospital: Hospital, served: Served) -> AsyncIterator[FetchResult]:
    yield await hospital.fetch(
        served,
        site="vi1.349.mesimagesmedicales.fr",
        certificate=None,
        roots=None,
        host_header=hospital.stand.sites[0],
    )


@asynccontextmanager
async def one_instance(hospital: Hospital, served: Served) -> AsyncIterator[FetchResult]:
    instance = served.study.series[0].instances[0].sop_instance_uid
    yield await hospital.fetch(served, instance=instance)


def unknown(served: Served) -> Served:
    return attrs.evolve(served, study=attrs.evolve(served.study, study_uid="2.25.404404"))


OTHER = "Autre erreur"
ROWS: dict[str, Row] = {
    "E1001 unknown study": Row(
        404, "E1001", "KOS absent de la DRIMbox source", lambda h, s: asking(h, unknown(s))
    ),
    "E1002 depublished": Row(410, "E1002", "KOS dépublié ou examen indisponible", depublished),
    "E1003 the PACS has no association to give": Row(
        503,
        "E1003",
        "Connexion refusée : nombre maximal de connexions simultanées atteint",
        lambda h, s: with_pacs(h, s, reject=(2, 3, 2)),
        (("retry-after", ""),),
    ),
    "E1004 PACS down": Row(
        502, "E1004", "Erreur de communication avec le PACS source", lambda h, s: with_pacs(h, s, down=True)
    ),
    "E1004 PACS refuses us": Row(
        502,
        "E1004",
        "Erreur de communication avec le PACS source",
        lambda h, s: with_pacs(h, s, reject=(1, 1, 3)),
    ),
    "E1005 PACS silent": Row(
        504,
        "E1005",
        "Erreur de récupération des images : délai dépassé",
        lambda h, s: with_pacs(h, s, move="silent"),
    ),
    "E1101 no verified certificate": Row(
        403,
        "E1101",
        "Échec d'établissement de la connexion TLS mutuelle",
        through_the_viewer,
        judged=False,
    ),
    "E1102 not listed": Row(
        401,
        "E1102",
        "DRIMbox consommatrice absente de la liste blanche",
        from_a_stranger,
        (("www-authenticate", "Bearer"),),
        judged=False,
    ),
    "E1103 another KOS": Row(
        404,
        "E1103",
        "Identifiant du KOS de la requête différent de celui de la DRIMbox source",
        lambda h, s: asking(h, s, kos="2.25.1103"),
    ),
    "E1104 no token": Row(
        401,
        "E1104",
        "Jeton d'accès absent",
        lambda h, s: asking(h, s, token=None),
        (("www-authenticate", "Bearer"),),
        judged=False,
    ),
    "E1104 token of nobody": Row(
        403, "E1104", "Jeton d'accès invalide", lambda h, s: asking(h, s, token="inconnu")
    ),
    "E1104 introspection down": Row(
        502,
        "E1104",
        "Vérification du jeton d'accès impossible : service indisponible",
        lambda h, s: without_introspection(h, s, silent=False),
    ),
    "E1104 introspection silent": Row(
        504,
        "E1104",
        "Vérification du jeton d'accès impossible : délai dépassé",
        lambda h, s: without_introspection(h, s, silent=True),
    ),
    "E1104 nothing acceptable": Row(
        406,
        "E1104",
        "Aucune syntaxe de transfert acceptable",
        lambda h, s: asking(h, s, accept=(ACCEPT.format("1.2.840.10008.1.2.4.201"),)),
        judged=False,
    ),
    "E1104 malformed": Row(
        400, "E1104", "Requête mal formée", lambda h, s: asking(h, s, kos="1.2.a"), judged=False
    ),
    "E1104 no Accept": Row(
        400, "E1104", "Requête mal formée", lambda h, s: asking(h, s, accept=()), judged=False
    ),
    "E1105 instance level": Row(
        415, "E1105", "Requête au niveau instance non prise en charge", one_instance, judged=False
    ),
}


@pytest.fixture(scope="module")
def secret(running_hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A published study of the patient nobody may hear of."""
    study = make_study(
        tmp_path_factory.mktemp("secret"), instances=2, patient=SECRET, transfer_syntax=JPEG_LS, seed=801
    )
    served: Served = wait(running_hospital.publish(study))
    return served


async def records(hospital: Hospital, number: int) -> list[dict[str, Any]]:
    """Wait for the audit records of refused image requests that followed `number`."""
    # A success is recorded when the client has it already: that of the test before may come now.
    query = "select payload from audit where id > ? and payload like '%RAD-107%' and outcome <> 0"
    await until(lambda: hospital.database(query, number), what="an audit record")
    return [json.loads(payload)["event"] for (payload,) in hospital.database(query, number)]


@pytest.mark.requirement("DB.SO.47", "DB.SO.46")
@pytest.mark.parametrize("name", ROWS)
@pytest_twisted.ensureDeferred
async def test_each_row_of_the_table(hospital: Hospital, secret: Served, name: str) -> None:
    row = ROWS[name]
    before, logged = hospital.audited(), hospital.stand.log.stat().st_size
    async with row.provoke(hospital, secret) as result:
        pass
    assert result.status == row.status, result
    assert result.complete, result.error
    problem = result.problem
    assert problem is not None
    assert problem["code"] == row.code
    assert problem["title"] == row.title
    assert problem["status"] == row.status
    assert problem["type"] == f"urn:x-drimbox:{row.code}"
    assert set(problem) <= {"type", "title", "status", "code", "detail"}
    for header, value in (
        ("content-type", "application/problem+json"),
        ("content-language", "fr"),
        ("cache-control", "no-store"),
        *row.headers,
    ):
        assert (result.header(header) or "absent").startswith(value), header
    if row.status == 503:
        assert 1 <= int(result.header("retry-after") or 0) <= 86400
    said = (str(result.headers) + json.dumps(problem, ensure_ascii=False)).encode()
    assert not [word for word in PRIVATE if word in said]
    (event,) = await records(hospital, before)
    check_record(event, row, hospital, secret)
    written = hospital.stand.log.read_bytes()[logged:]
    assert not [word for word in (*PRIVATE, b"Bearer") if word in written]


def check_record(event: dict[str, Any], row: Row, hospital: Hospital, served: Served) -> None:
    """Requirements.md 3.8.3: who asked, from where, whom, for which study, and how it ended."""
    assert (event["event_id"], event["action"]) == ("110106", "R")
    assert event["outcome"] in (4, 8, 12)
    assert event["outcome_description"].startswith(f"{row.code} - {row.title}")
    caller, ours = event["participants"]
    if row.code != "E1101":
        assert caller["network_id"] == "127.0.0.1"
    assert not caller["requestor"]
    assert ours["network_id"] in hospital.stand.sites
    (study,) = event["objects"]
    assert (study["type"], study["role"], study["life_cycle"]) == ("2", "3", "10")
    assert "110180" in study["id_type"]
    assert study["details"][0][0] == "Repository Unique ID"
    if row.judged:
        asked = "2.25.404404" if row.code == "E1001" else served.uid
        assert study["id"] == asked
    if row.judged and not row.title.startswith(("Jeton", "Vérification")):
        assert caller["alternative_user_id"] not in ("", "INCONNU")
    elif not row.judged:
        assert caller["alternative_user_id"] == "INCONNU"


@pytest.mark.requirement("DB.SO.46")
@pytest.mark.parametrize("name", ["E1102 not listed", "E1104 no token", "E1101 no verified certificate"])
@pytest_twisted.ensureDeferred
async def test_a_refusal_before_the_delivery_names_study_and_caller(
    hospital: Hospital, secret: Served, name: str
) -> None:
    """Requirements.md 3.8.3: the StudyInstanceUID queried, and where the question came from, always."""
    before = hospital.audited()
    async with ROWS[name].provoke(hospital, secret):
        pass
    (event,) = await records(hospital, before)
    assert event["participants"][0]["network_id"] == "127.0.0.1"
    assert event["objects"][0]["id"] == secret.uid


@pytest.mark.requirement("DB.SO.134", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_e1006_names_neither_of_the_two_patients(strict: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=1, patient=SECRET, seed=802)
    served = await strict.publish(study)
    before = strict.audited()
    result = await strict.fetch(served)
    assert result.status == 406
    problem = result.problem
    assert problem is not None
    assert problem["code"] == "E1006"
    assert problem["title"] == "Identifiant patient différent entre l'archive locale et le PACS"
    said = (str(result.headers) + json.dumps(problem, ensure_ascii=False)).encode()
    assert not [word for word in PRIVATE if word in said]
    (event,) = await records(strict, before)
    assert event["outcome_description"].startswith("E1006 - ")
    notices = [notice for notice in await strict.notices() if notice["code"] == "E1006"]
    assert notices
    assert not [word for word in PRIVATE if word in json.dumps(notices, ensure_ascii=False).encode()]


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_e1104_is_what_an_image_no_codec_reads_costs(hospital: Hospital, tmp_path: Path) -> None:
    """500: the client takes another syntax than the one held, and what is held is damaged."""
    study = make_study(tmp_path, instances=1, patient=SECRET, transfer_syntax=JPEG_LS, seed=803)
    path = study.files[0]
    data = path.read_bytes()
    start = data.index(b"\xff\xd8\xff")
    path.write_bytes(data[: start + 2] + bytes(64) + data[start + 66 :])
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    before = hospital.audited()
    result = await hospital.fetch(served, accept=(ACCEPT.format("1.2.840.10008.1.2.4.70"),))
    assert result.status == 500, result
    assert result.problem is not None
    assert (result.problem["code"], result.problem["title"]) == ("E1104", OTHER)
    assert result.problem["detail"] == "transcodage impossible"
    (event,) = await records(hospital, before)
    assert event["outcome_description"].startswith("E1104 - Autre erreur")
    await hospital.idle()


@pytest.fixture(scope="module")
def unlisted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A gateway whose own certificate is not in the whitelist."""
    hospital = Hospital(tmp_path_factory.mktemp("unlisted"), sites=1)

    async def start() -> None:
        stand = hospital.stand
        await stand.start()
        only = [ListedDomain.for_certificate("1", stand.pki.sites[CONSUMER])]
        (stand.folder / "whitelist.xml").write_bytes(make_whitelist(only, stand.pki.whitelist_signer))
        await stand.start_gateway()

    try:
        wait(start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.mark.requirement("DB.CS.164")
@pytest_twisted.ensureDeferred
async def test_a_gateway_that_is_not_listed_itself_serves_no_image(
    unlisted: Hospital, tmp_path: Path
) -> None:
    served = Served(make_study(tmp_path, instances=1, seed=804), "2.25.1", 0)
    before = unlisted.audited()
    result = await unlisted.fetch(served)
    assert result.status == 503
    assert result.problem is not None
    assert (result.problem["code"], result.problem["title"]) == (
        "E1104",
        "Service momentanément indisponible",
    )
    assert int(result.header("retry-after") or 0) >= 1
    (event,) = await records(unlisted, before)
    assert event["outcome_description"].startswith("E1104")
    assert not unlisted.pacs[0].seen("move")
