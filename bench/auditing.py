"""The audit trail of ten million events: what finding a patient's costs, and everything else it must bear.

Figures (`python -m bench --only audit`), on a trail of that many events in the proportions of a Source
(reports, questions to the DMP, publications, images), each patient's scattered over the whole of it:
- `audit.events`, `audit.bytes`: how many, and bytes on disk for each, indexes included;
- `audit.search`, `audit.search_p99`: seconds of what `drimbox audit search --ins` does, from the opening of
  the store to the last event, its own record in the trail included; `audit.found`: events it finds;
- `audit.search_cold`: the same with nothing of the file in the system's cache at the start, of as many
  patients, each for the first time;
- `audit.command`: the same as a whole process, from its start to its end, worst of some;
- `audit.search_study`, `audit.search_failed`, `audit.search_day`: the same for a study, for failures, and
  for a page of a day in the middle of the trail;
- `audit.append`: events a second added to it, a durable commit each;
- `audit.verify`: events a second verified by `drimbox audit verify`, and `audit.verify_memory`: by how much
  the process grew over the whole of it, MB.

The program (`python -m bench.auditing FOLDER COUNT`) is a process of its own. The trail is made in bulk,
not durably, its triggers and indexes put aside meanwhile; its texts are those the gateway's code makes,
and the verification proves its chain. Everything measured is the gateway's own code.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
from sqlalchemy import make_url

from bench.kosarchive import forget
from bench.plan import Plan
from bench.processes import peak_mb, reset_peak, resident_mb
from bench.program import ROOT, Program, say
from bench.results import Results
from bench.ris import message, study_of
from drimbox.audit import messages
from drimbox.audit.messages import DmpExchange
from drimbox.audit.ontrail import trail_read
from drimbox.clock import SystemClock
from drimbox.errors import RetrieveTimeout
from drimbox.ports import AuditEvent
from drimbox.source.interpretation import interpret
from drimbox.store import codec
from drimbox.store.auditchain import row_of
from drimbox.store.auditdesk import AuditDesk
from drimbox.store.auditsearch import AuditQuery
from drimbox.store.schema import GENESIS
from drimbox.store.upgrade import upgrade

#: Events of one patient, and events a day of a large structure.
_EACH, _A_DAY = 10, 20_000
#: Rows of one transaction while the trail is made.
_BULK = 20_000
#: Searches measured, each of another patient; events added; commands run.
_SEARCHES, _ADDED, _COMMANDS = 200, 200, 5
#: Seconds that making and measuring ten million may take.
_LONGEST = 7200.0
_FIRST = datetime(2025, 1, 1, tzinfo=UTC)
#: Stand for number, instant, patient and study in the texts that all events of a kind share.
_MARKS = (9349000000000001, "2999-12-31T23:59:59.000349+00:00", "999999999999349", "2.25.999349999")


def measure_audit(results: Results, plan: Plan, folder: Path) -> None:
    """Make a trail and measure it, in a process of its own."""
    arguments = (str(folder), str(plan.audited))
    with Program("bench.auditing", *arguments, log=folder / "log", timeout=_LONGEST) as program:
        for name, (value, unit) in program.read().items():
            results.add(f"audit.{name}", value, unit)


def measure(folder: Path, count: int) -> dict[str, tuple[float, str]]:
    """Return the figures by name, with their unit."""
    file = folder / "state" / "drimbox.db"
    file.parent.mkdir(parents=True)
    url = f"sqlite:///{file}"
    upgrade(make_url(url))
    fill(file, count)
    size = sum(path.stat().st_size for path in file.parent.glob("drimbox.db*"))
    patients = max(1, count // _EACH)
    chosen = random.Random(349).sample(range(patients), min(patients, 2 * _SEARCHES))
    forget(file)
    cold = [_search(url, ins=patient(number))[0] for number in chosen[:_SEARCHES]]
    found = [_search(url, ins=patient(number)) for number in chosen[-_SEARCHES:]]
    warm = [_search(url, ins=patient(number))[0] for number in chosen[-_SEARCHES:]]
    if min(events for _, events in found) < 1:
        raise LookupError("a patient of the trail was not found")
    day = _FIRST + timedelta(days=count // 2 // _A_DAY)
    return {
        "events": (count, "events"),
        "bytes": (size / count / 1000, "KB"),
        "found": (statistics.mean(events for _, events in found), "events"),
        "search": (statistics.median(warm), "s"),
        "search_p99": (statistics.quantiles(warm, n=100)[98], "s"),
        "search_cold": (statistics.median(cold), "s"),
        "search_cold_p99": (statistics.quantiles(cold, n=100)[98], "s"),
        "command": (_command(folder, [patient(number) for number in chosen[:_COMMANDS]]), "s"),
        "search_study": (_search(url, study=study_of(chosen[0]))[0], "s"),
        "search_failed": (_search(url, outcomes=(4, 8, 12))[0], "s"),
        "search_day": (_search(url, start=day, end=day + timedelta(days=1))[0], "s"),
        "append": (_adding(url), "/s"),
        **_verified(url, count),
    }


def patient(number: int) -> str:
    """Return the INS of a patient."""
    return f"{100_000_000_000_000 + number}"


def fill(file: Path, count: int) -> None:
    """Make a trail of `count` events in bulk."""
    with closing(sqlite3.connect(file, isolation_level=None)) as store:
        store.execute("PRAGMA synchronous=OFF")
        put_aside = store.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE tbl_name IN ('audit', 'audit_head')"
            " AND type IN ('trigger', 'index') AND sql IS NOT NULL ORDER BY type"
        ).fetchall()
        for kind, name, _ in put_aside:
            store.execute(f"DROP {kind} {name}")
        link = GENESIS
        for first in range(1, count + 1, _BULK):
            rows = list(_rows(range(first, min(first + _BULK, count + 1)), link, max(1, count // _EACH)))
            store.execute("BEGIN")
            store.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            store.execute("COMMIT")
            link = rows[-1][-1]
        store.execute("UPDATE audit_head SET last_id = ?, hash = ?", (count, link))
        for _, _, sql in put_aside:
            store.execute(sql)
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _rows(
    numbers: range, link: str, patients: int
) -> Iterator[tuple[int, str, str, int, str, str, str, str, str]]:
    kinds = [_template(event) for event in _events()]
    step = timedelta(days=1) / _A_DAY
    for number in numbers:
        text, event_id, outcome = kinds[number % len(kinds)]
        # Multiplied by a prime: what concerns a patient is never near what concerned him last.
        who = number * 2_147_483_647 % patients
        instant = _FIRST + step * number
        ins, study = patient(who), study_of(who)
        written = instant.isoformat(timespec="microseconds")
        payload = text % {"number": number, "instant": written, "ins": ins, "study": study}
        previous, link = link, hashlib.sha256((link + payload).encode("ascii")).hexdigest()
        shown = instant.strftime("%Y-%m-%d %H:%M:%S.%f")
        yield number, shown, event_id, outcome, ins, study, payload, previous, link


def _template(event: AuditEvent) -> tuple[str, str, int]:
    """Return the text of an event with the places of what differs, its EventID and its outcome."""
    number, instant, ins, study = _MARKS
    row = row_of(number, datetime.fromisoformat(instant), event, codec.to_plain(event), GENESIS)
    text = row["payload"].replace("%", "%%").replace(f'"id":{number}', '"id":%(number)d')
    for mark, place in ((instant, "instant"), (ins, "ins"), (study, "study")):
        text = text.replace(mark, f"%({place})s")
    return text, event.event_id, event.outcome


def _events() -> list[AuditEvent]:
    """Return the events of a study's life, in the proportions of a Source."""
    read = interpret(message(0))
    assert read.message is not None
    assert read.report is not None
    report = read.report
    _, _, ins, study = _MARKS
    report = attrs.evolve(
        report,
        patient=attrs.evolve(report.patient, ins=ins),
        acts=tuple(attrs.evolve(act, study_uid=study) for act in report.acts),
    )
    common = {"source_name": "db1.349.mesimagesmedicales.fr", "internal_id": "IMAGERIE"}
    dmp = {"dmp": "https://lps2.dmp.example", "structure_id": "1999999999", "study_uid": study}
    asked = [
        messages.dmp_exchange(kind=kind, report=report, document_uid="2.25.1", **dmp, **common)
        for kind in (DmpExchange.EXISTENCE, DmpExchange.SEARCH)
    ]
    images = {
        "study_uid": study,
        "caller_address": "192.0.2.10",
        "situation": "1999999999",
        "repository_uid": "1.2.250.1.999.349.1",
    }
    served = [
        attrs.evolve(messages.images_served(kos=None, error=error, **images, **common), patient_ins=ins)
        for error in (None, None, None, None, RetrieveTimeout("120 images sur 300"))
    ]
    received = messages.report_received(
        message=read.message, report=report, ris_address="192.0.2.20", **common
    )
    failed = messages.kos_failed(report=report, study_uid=study, error=RetrieveTimeout(), **common)
    published = attrs.evolve(failed, outcome=0, outcome_description="")
    return [received, *asked, published, *served[:4], asked[0], served[4]]


def _search(url: str, **criteria: object) -> tuple[float, int]:
    """Search as the command does; return the seconds it took and how many events it found."""
    started = time.perf_counter()
    with AuditDesk(make_url(url)) as desk:
        own = desk.record(
            trail_read(user="bench", machine="bench", program="bench", trail="urn:bench", criteria=()),
            SystemClock(),
        )
        events = list(desk.search(AuditQuery(**criteria), limit=1000, before=own))  # type: ignore[arg-type]
    return time.perf_counter() - started, len(events)


def _command(folder: Path, patients: list[str]) -> float:
    """Return the longest time that `drimbox audit search --ins` took as a process."""
    config = folder / "drimbox.toml"
    config.write_text(_CONFIG.format(state=json.dumps(str(folder / "state"))))
    taken = []
    for ins in patients:
        started = time.perf_counter()
        command = [sys.executable, "-m", "drimbox.cli", "audit", "search", "--config", str(config)]
        done = subprocess.run(
            [*command, "--ins", ins, "--format", "csv"],
            capture_output=True,
            check=True,
            cwd=ROOT,
            timeout=120,
        )
        taken.append(time.perf_counter() - started)
        if ins.encode() not in done.stdout:
            raise LookupError("the command did not find the patient")
    return max(taken)


def _adding(url: str) -> float:
    """Return how many events a second are added, one commit each."""
    event = _events()[0]
    with AuditDesk(make_url(url)) as desk:
        started = time.perf_counter()
        for _ in range(_ADDED):
            desk.record(event, SystemClock())
        return _ADDED / (time.perf_counter() - started)


def _verified(url: str, count: int) -> dict[str, tuple[float, str]]:
    before = resident_mb(os.getpid())
    reset_peak(os.getpid())
    started = time.perf_counter()
    with AuditDesk(make_url(url)) as desk:
        check = desk.verify(None, lambda checked: None)
    taken = time.perf_counter() - started
    if check.fault is not None or check.checked < count:
        raise LookupError(f"the chain of the bench is not whole: {check}")
    return {
        "verify": (check.checked / taken, "/s"),
        "verify_memory": (max(0.0, peak_mb(os.getpid()) - before), "MB"),
    }


#: Complete for who reads no file but the store.
_CONFIG = """
[drimbox]
state_dir = {state}
system_id = "349"
oid = "1.2.250.1.999.349"
serial_number = "1"
dmp_certification = "1"
[trust]
consumer_roots = "x.pem"
whitelist = "x.xml"
whitelist_roots = "x.pem"
[dmp]
base_url = "https://dmp.example.test"
roots = "x.pem"
[psc]
introspection_url = "https://psc.example.test/introspect"
client_id = "x"
client_secret_file = "x"
[[ris]]
name = "ris"
[[structure]]
id = "1470003641"
name = "x"
authentication = {{ certificate = "x.pem", key = "x.key" }}
signature = {{ certificate = "x.pem", key = "x.key" }}
[[site]]
name = "x"
wado_fqdn = "db1.349.mesimagesmedicales.fr"
viewer_fqdn = "vi1.349.mesimagesmedicales.fr"
wado_certificate = {{ certificate = "x.pem", key = "x.key" }}
[site.pacs]
name = "X"
ae_title = "X"
host = "192.0.2.1"
port = 104
pool = ["X1", "X2", "X3"]
"""


def main() -> None:
    """Make, measure and say."""
    say(**measure(Path(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
