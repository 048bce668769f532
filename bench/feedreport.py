"""The sections of docs/performance.md about the feed, from `bench/results/feed.json` and `scale.json`."""

from __future__ import annotations

from collections.abc import Callable

from bench.figures import Figures, table
from bench.machine import FREE

_STEPS = {
    "to the acknowledgement (committed)": "ack",
    "to the end of its reading": "read",
    "from there: C-FIND, manifest, signature, queued": "match",
    "from there: question TD0.2 at the DMP": "queue",
    "from there: TD2.1 at the DMP (answer to TD0.2, audit, attempt committed, VIHF)": "ask",
    "from there: question TD3.1 at the DMP (its own checks of TD2.1 above all)": "judge",
    "from there: published, committed": "end",
}


def feed_machine(figures: Figures) -> str:
    """Say which run, on what."""
    about, run = figures.document["machine"], figures.document["run"]
    quick = " **A quick run: small sizes, its figures mean little.**" if run["quick"] else ""
    scaling, cores = figures.value("machine.scaling"), int(about["cores"])
    disturbed = (
        " **The machine had other work, or its cores are not whole ones: every rate below is lower, and "
        "every time longer, than on a machine of one's own; processor times grow too, but less.**"
        if scaling is not None and scaling < FREE * cores
        else ""
    )
    gone = [f"\n- failed: {each['name']}: {each['why']}" for each in figures.document["failed"]]
    gone += [f"\n- left out: {each['name']}: {each['why']}" for each in figures.document["left_out"]]
    return (
        f"Run of {run['started']}, {run['seconds']} s.{quick} {about['cpu']}, {cores} cores, "
        f"{about['memory']}, Python {about['python']}. "
        f"One process hashes {figures.cell('machine.speed')} (SHA-256) at the start "
        f"and {figures.cell('machine.speed_after')} at the end; one per core together "
        f"{figures.cell('machine.scaling')} times that.{disturbed}{''.join(gone)}\n"
    )


def feed_latency(figures: Figures) -> str:
    """One report, everything idle."""
    rows = [
        ("**to TD2.1 at the DMP**", "dmp"),
        ("the same, study of 300 images", "large.dmp"),
        ('to "published" in the archive', "published"),
        *_STEPS.items(),
    ]
    return _rows("from the last byte of the report", figures, [(t, f"feed.latency.{n}") for t, n in rows])


def feed_rates(figures: Figures) -> str:
    """What is accepted and published."""
    rows = []
    for number in figures.numbers(r"feed\.accept\.(\d+)\.rate"):
        many = f"{number} connection{'s' if number != '1' else ''}"
        rows += [
            (f"small reports accepted over {many}, while the feed works", f"feed.accept.{number}.rate"),
            ("a report waits for its acknowledgement", f"feed.accept.{number}.wait"),
        ]
    rows += [
        ("reports of 10 MB accepted, one connection", "feed.accept.large.rate"),
        ("the same in bytes", "feed.accept.large.throughput"),
        ("**publications, end to end**", "feed.publications"),
        ("the same, studies of 300 images", "feed.publications.large"),
        ("processor time of one publication: gateway", "feed.cpu.gateway"),
        ("… simulated DMP, which checks every signature", "feed.cpu.dmp"),
        ("… stand-in PACS", "feed.cpu.pacs"),
        ("… RIS", "feed.cpu.ris"),
        ("part of all of them that is the simulated DMP's", "feed.cpu.dmp_share"),
    ]
    return _rows("bursts", figures, rows)


def drain(figures: Figures) -> str:
    """A full inbox."""
    rows = [
        ("reports in the inbox at the start", "drain.reports"),
        ("publications, over all", "drain.publications"),
        ("… the first tenth", "drain.start"),
        ("… a middle tenth", "drain.middle"),
        ("… the last tenth", "drain.end"),
        ("slowest of middle and end over the start", "drain.kept"),
        ("memory of the gateway at the start", "drain.memory.start"),
        ("… half-way", "drain.memory.middle"),
        ("… at the end", "drain.memory.end"),
        ("… at its peak", "drain.memory.peak"),
        ("store on disk, for one report", "drain.bytes"),
        ("then exported as one month (DB.SO.29)", "export.rate"),
        ("… memory of the gateway above what it held before", "export.memory"),
    ]
    return _rows("drain", figures, rows)


def archive(figures: Figures) -> str:
    """A large archive."""
    rows = [
        ("KOS in the archive", "archive.kos"),
        ("lookup by StudyInstanceUID, median", "archive.lookup"),
        ("… 99th percentile", "archive.lookup_p99"),
        ("… nothing in any cache, median", "archive.lookup_cold"),
        ("… of a KOS with 10 MB of bytes", "archive.lookup_large"),
        ("… the same, nothing in any cache", "archive.lookup_large_cold"),
        ("one page of 100 of a walk (DB.SO.28), the first ones", "archive.walk"),
        ("… the last ones", "archive.walk_end"),
        ("… memory it takes, over all pages", "archive.walk_memory"),
        ("KOS added, one durable commit each", "archive.insert"),
        ("… into an empty archive", "archive.insert_empty"),
        ("on disk for one KOS, 4 KB of it KOS and metadata", "archive.bytes"),
    ]
    return _rows("archive", figures, rows)


def scale(figures: Figures) -> str:
    """A whole archive at work."""
    works = {
        "import": "loaded (DB.SO.30)",
        "resync": "held against the PACS (DB.SO.28)",
        "export": "exported as one month (DB.SO.29)",
    }
    rows = [
        (
            text,
            *(figures.cell(f"scale.{name}.{key}") for key in ("kos", "rate", "cpu", "memory")),
            figures.target(f"scale.{name}.memory"),
        )
        for name, text in works.items()
    ]
    head = ("the archive is", "KOS", "a second", "processor, each", "memory above", "target")
    return f"{feed_machine(figures)}\n{table(head, rows)}"


def audit(figures: Figures) -> str:
    """A large audit trail."""
    rows = [
        ("events in the trail", "audit.events"),
        ("bytes on disk for each, indexes included", "audit.bytes"),
        ("`drimbox audit search --ins`, the whole process, worst of five", "audit.command"),
        ("the search itself, its own record in the trail included, median", "audit.search"),
        ("… 99th percentile", "audit.search_p99"),
        ("… nothing of the trail in the system's cache, median", "audit.search_cold"),
        ("… 99th percentile", "audit.search_cold_p99"),
        ("search of a study", "audit.search_study"),
        ("search of failures, 1,000 of them", "audit.search_failed"),
        ("search of a day in the middle, 1,000 events of it", "audit.search_day"),
        ("events added, a durable commit each", "audit.append"),
        ("events verified (`drimbox audit verify`)", "audit.verify"),
        ("… memory it takes, over the whole trail", "audit.verify_memory"),
    ]
    return f"{feed_machine(figures)}\n{_rows('audit trail', figures, rows)}"


def backup(figures: Figures) -> str:
    """A backup and its restore."""
    rows = [
        ("KOS in the archive", "backup.kos"),
        ("size of the store", "backup.store"),
        ("`drimbox backup`: copied beside the gateway, packed, verified", "backup.plain"),
        ("… its size", "backup.plain_size"),
        ("… encrypted", "backup.sealed"),
        ("`drimbox restore --check` of the encrypted one", "backup.check"),
        ("`drimbox restore` of it", "backup.restore"),
        ("… KOS a second", "backup.restore_rate"),
    ]
    return f"{feed_machine(figures)}\n{_rows('backup', figures, rows)}"


def nodes(figures: Figures) -> str:
    """Several processes on one store."""
    rows = [
        (
            number,
            *(
                figures.cell(f"nodes.{number}.{key}")
                for key in ("accepted", "published", "publication_cpu", "delivered", "busiest")
            ),
        )
        for number in figures.numbers(r"nodes\.(\d+)\.published")
    ]
    head = (
        "processes",
        "reports accepted",
        "published",
        "processor of all nodes, a publication",
        "four deliveries at once",
        "part of the busiest node",
    )
    return f"{feed_machine(figures)}\n{table(head, rows)}"


def _rows(title: str, figures: Figures, rows: list[tuple[str, str]]) -> str:
    return table(
        (title, "target", ""),
        [(text, figures.target(name), figures.cell(name)) for text, name in rows],
    )


FEED_SECTIONS: dict[str, Callable[[Figures], str]] = {
    "feed_machine": feed_machine,
    "feed_latency": feed_latency,
    "feed_rates": feed_rates,
    "drain": drain,
    "archive": archive,
}
#: Sections of a run of their own, called by its name.
OWN_SECTIONS: dict[str, Callable[[Figures], str]] = {
    "scale": scale,
    "audit": audit,
    "backup": backup,
    "nodes": nodes,
}
