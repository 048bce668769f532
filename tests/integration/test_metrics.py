"""What Prometheus reads from a running gateway: current, bounded, and without anybody's identity in it."""

from __future__ import annotations

import re
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families
from pynetdicom import AE
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import find_program
from drimbox.sim.ris import SimMessage, SimReport, build_message
from drimbox.sim.stand import LOOPBACK
from drimbox.sim.studies import make_study
from tests.integration.hospital import ANY, Hospital, Served, behave
from tests.integration.waiting import until

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(hospital: Hospital) -> tuple[str, Series]:
    """Return the text and its series."""
    status, body = await hospital.stand.admin("/metrics")
    assert status == 200
    text = body.decode()
    return text, {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    """Return one value, 0 when it has no series."""
    return series.get((name, frozenset(labels.items())), 0.0)


async def be_hostile(hospital: Hospital, served: Served, word: str) -> None:
    """Say `word` wherever a peer may say something."""
    stand = hospital.stand
    message = build_message(SimReport(document_id="2.25.1"), SimMessage(control_id=word))
    unknown = message.replace(b"RIS-Y", word.encode(), 1)
    assert (await stand.send(unknown)).code != "AA"
    for field, text in (("kos", f"2.25.{int(word, 16)}"), ("token", word * 3), ("path", f"/{word}")):
        options: dict[str, Any] = {field: text} if field != "path" else {}
        if field == "path":
            await hospital.raw(hospital.request(served, first=f"{word} {text}?{word} HTTP/1.1"))
        else:
            await hospital.fetch(served, **options)
    await hospital.fetch(served, accept=(f"application/{word}", ANY.replace("*", word)))
    await hospital.raw(hospital.request(served, f"X-{word}: {word}", host=word))

    def call() -> None:
        entity = AE(ae_title=word[:16])
        entity.add_requested_context("1.2.840.10008.1.1")
        entity.associate(LOOPBACK, stand.dicom_port, ae_title=word[:16]).abort()
        with socket.create_connection((LOOPBACK, stand.wado_port), timeout=20) as plain:
            plain.sendall(word.encode() * 10)

    await deferToThread(call)


@pytest.mark.threat("patient data in logs and notices")
@pytest.mark.peer("promtool")
@pytest_twisted.ensureDeferred
async def test_hostile_peers_make_no_series_and_nobody_is_named(
    hospital: Hospital, scanner: Served, tmp_path: Path
) -> None:
    words = [secrets.token_hex(8) for _ in range(6)]
    for word in words[:2]:
        await be_hostile(hospital, scanner, word)
    await hospital.fetch(scanner)
    await hospital.idle()
    _, before = await scrape(hospital)
    for word in words[2:]:
        await be_hostile(hospital, scanner, word)
    await hospital.idle()
    text, after = await scrape(hospital)
    # An outcome may be seen for the first time; four times four values would make more than that.
    # Certificates of our own are first looked at within half a minute.
    fresh = {key for key in after.keys() - before.keys() if "certificate" not in key[0]}
    assert len(fresh) < 4, fresh
    name = "drimbox_deliveries_total"
    totals = [sum(count for key, count in each.items() if key[0] == name) for each in (before, after)]
    assert totals[1] > totals[0]
    patient = scanner.study.patient
    traits = [patient.id, *patient.name.split("^"), scanner.uid, scanner.kos, *words]
    for trait in traits:
        assert trait not in text, trait
    said = {label for _, labels in after for _, label in labels}
    assert not [label for label in said if re.search(r"2\.25\.\d|\d{13}", label)]
    done: Any = await deferToThread(
        subprocess.run,
        [find_program("promtool"), "check", "metrics"],
        input=text.encode(),
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest_twisted.ensureDeferred
async def test_a_delivery_moves_what_it_should(hospital: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=12, rows=64, columns=64, seed=301)
    served = await hospital.publish(study)
    _, before = await scrape(hospital)
    hospital.pacs[0].behaviour = behave(pause=0.01)
    result = await hospital.fetch(served)
    assert result.complete
    await hospital.idle()
    _, after = await scrape(hospital)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    syntax = "Explicit VR Little Endian"
    assert grown("drimbox_delivered_instances_total", site="site1", syntax=syntax) == 12
    assert grown("drimbox_delivered_bytes_total", site="site1") > 12 * 64 * 64
    assert grown("drimbox_deliveries_total", site="site1", code="ok") == 1
    assert grown("drimbox_delivery_seconds_count", site="site1") == 1
    assert grown("drimbox_first_image_seconds_count", site="site1") == 1
    rate = {"site": "site1", "syntax": syntax}
    assert grown("drimbox_delivery_images_per_second_count", **rate) == 1
    assert 0 < grown("drimbox_delivery_images_per_second_sum", **rate) < 120


@pytest_twisted.ensureDeferred
async def test_queues_dmp_and_machine_are_looked_at_when_somebody_scrapes(
    hospital: Hospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=1, seed=302)
    _, before = await scrape(hospital)
    for name in ("inbox", "feed", "outbox"):
        assert value(before, "drimbox_queue_depth", queue=name) == 0
        assert value(before, "drimbox_queue_oldest_seconds", queue=name) == 0
    # The PACS is down: the study waits in the feed queue, and grows old there.
    hospital.pacs[0].behaviour = behave(down=True)
    hospital.pacs[1].behaviour = behave(down=True)
    hospital.pacs[0].load(study)

    async def waits() -> bool:
        _, series = await scrape(hospital)
        aged = value(series, "drimbox_queue_oldest_seconds", queue="feed") > 0.5
        return aged and value(series, "drimbox_queue_depth", queue="feed") == 1

    publishing = Deferred.fromCoroutine(hospital.publish(study, load=False))
    await until(waits, what="a study in the feed queue")
    for pacs in hospital.pacs:
        pacs.behaviour = behave()
    await publishing
    _, after = await scrape(hospital)
    for transaction in ("TD0.2", "TD2.1", "TD3.1"):
        labels = {"transaction": transaction, "result": "answered"}
        name = "drimbox_dmp_exchanges_total"
        assert value(after, name, **labels) > value(before, name, **labels), transaction
        assert value(after, "drimbox_dmp_exchange_seconds_count", transaction=transaction) > 0
    assert value(after, "drimbox_queue_oldest_seconds", queue="feed") == 0
    assert value(after, "drimbox_whitelist_has_site", site="site1") == 1
    assert value(after, "drimbox_reactor_lag_seconds_count") > 0
    assert value(after, "drimbox_state_free_bytes") > 0
    assert value(after, "process_resident_memory_bytes") > 2**24
    assert value(after, "drimbox_speedtests_total", site="site1", result="failed") == 0
    assert ("drimbox_speedtests_total", frozenset({("site", "site1"), ("result", "failed")})) in after
