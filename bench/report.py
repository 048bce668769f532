"""`python -m bench.report`: put the figures of the last run into docs/performance.md.

The document is written by hand but for what stands between two comments, `<!-- figures: ... -->` and
`<!-- end -->`: that is replaced by tables made from `bench/results/latest.json`, `feed.json`, `scale.json`,
`door.json`, `health.json` and `profile.json`. A figure that the run does not have is a dash, one that
misses its target is marked, and what failed is listed: nothing here rounds a miss into a hit.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.feedreport import FEED_SECTIONS, OWN_SECTIONS, feed_machine
from bench.figures import Figures, table
from bench.machine import FREE
from bench.program import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = Path(__file__).parent / "results"
_SECTION = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PACS = ("dcmqrscp", "orthanc")


def _by_pacs(figures: Figures, rows: Sequence[tuple[str, str]]) -> str:
    return table(
        ("", "target", *_PACS),
        [
            (
                title,
                figures.target(*(f"{pacs}.{name}" for pacs in _PACS)),
                *(figures.cell(f"{pacs}.{name}") for pacs in _PACS),
            )
            for title, name in rows
        ],
    )


def machine(figures: Figures) -> str:
    """Describe the machine and the run."""
    about, run = figures.document["machine"], figures.document["run"]
    peers = ", ".join(f"{name} {version}" for name, version in about["peers"].items())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    quick = " **A quick run: small sizes, its figures mean little.**" if run["quick"] else ""
    return (
        f"Run of {run['started']}, {run['seconds']} s.{quick} {about['cpu']}, {about['cores']} cores, "
        f"{about['memory']}, {about['system']}, Python {about['python']}; {versions}; {peers}. "
        f"One process hashes {figures.cell('machine.speed')} (SHA-256) at the start of the run and "
        f"{figures.cell('machine.speed_after')} at its end; one per core together "
        f"{figures.cell('machine.scaling')} times that.{_disturbed(figures, int(about['cores']))}\n"
    )


def _disturbed(figures: Figures, cores: int) -> str:
    """Warn when the cores were not all free."""
    scaling = figures.value("machine.scaling")
    if scaling is None or scaling >= FREE * cores:
        return ""
    return (
        " **The machine had other work, or its cores are not whole ones: what needs several processes at "
        "once, a delivery more than a bare C-MOVE, took longer than it takes.**"
    )


def delivery(figures: Figures) -> str:
    """The reference study, one delivery."""
    size = f"{figures.cell('study.instances')}, {figures.cell('study.size')}"
    rows = [
        ("bare C-MOVE into the null receiver", "bare_move"),
        ("whole study at the client (DB.SO.100)", "study"),
        ("**pipeline ratio**", "pipeline_ratio"),
        ("bare C-MOVE when `movescu` asks", "movescu_move"),
        ("ratio to that", "movescu_ratio"),
        ("throughput at the client", "rate"),
        ("first image, from the request (DB.SO.113)", "first_image"),
        ("the PACS's first C-STORE byte, from the request", "first_store"),
        ("first image, from that byte", "first_image_after_store"),
        ("processor time: gateway", "cpu.gateway"),
        ("processor time: PACS", "cpu.pacs"),
        ("processor time: client", "cpu.client"),
        ("processor time of the bare C-MOVE: PACS", "cpu.bare_pacs"),
        ("processor time of the bare C-MOVE: receiver", "cpu.bare_receiver"),
    ]
    return f"Reference study: {size}.\n\n{_by_pacs(figures, rows)}"


def rivals(figures: Figures) -> str:
    """Others at the same task."""
    rows = [
        ("gateway on pynetdicom, plain HTTP", "obvious.study"),
        ("its time over ours", "obvious_ratio"),
        ("its first image", "obvious.first_image"),
        ("Orthanc DICOMweb from its own disk, plain HTTP", "dicomweb.study"),
        ("our time over its", "dicomweb_ratio"),
        ("its first image", "dicomweb.first_image"),
        ("C-MOVE into pynetdicom, no HTTP", "pynetdicom_receiver.study"),
        ("C-MOVE into `movescu +P`, no HTTP", "dcmtk_receiver.study"),
    ]
    native = [
        ("whole study", "native.study"),
        ("first image", "native.first_image"),
        ("the same files read one after the other and dropped", "native.bare_read"),
        ("our time over that", "native.read_ratio"),
        ("our time over that of the archive's own DICOMweb", "native.dicomweb_ratio"),
    ]
    wide = table(
        ("native profile, Orthanc read in place (DB.SO.165)", ""),
        [(title, figures.cell(name)) for title, name in native],
    )
    return f"{_by_pacs(figures, rows)}\n{wide}"


def growth(figures: Figures) -> str:
    """Time and memory with the size of the study."""
    counts = sorted({int(n) for p in _PACS for n in figures.numbers(rf"{p}\.growth\.(\d+)\.study")})
    rows = []
    for pacs in _PACS:
        for count in counts:
            name = f"{pacs}.growth.{count}"
            cells = [figures.cell(f"{name}.{each}") for each in _GROWTH.values()]
            rows.append((pacs, f"{count:,}", *cells))
    more = [
        ("time per instance, largest over reference", "growth.linearity"),
        ("the same of the bare C-MOVE", "growth.bare_linearity"),
        ("memory, later: largest less reference", "growth.memory_spread"),
        ("2,000 instances of 20 KB", "tiny.rate"),
        ("the same, bare C-MOVE", "tiny.bare_rate"),
        ("the one's time over the other's", "tiny.ratio"),
    ]
    memory = table(
        ("memory of the gateway", ""),
        [
            ("idle", figures.cell("memory.idle")),
            ("above that, fast client", figures.cell("memory.fast_client")),
            ("above that, a client that reads 1 MB/s of 20 MB", figures.cell("memory.slow_client")),
        ],
    )
    wide = table(("PACS", "instances", *_GROWTH), rows)
    return f"{wide}\n{_by_pacs(figures, more)}\n{memory}"


_GROWTH = {
    "delivery": "study",
    "bare C-MOVE": "bare_move",
    "ratio": "ratio",
    "rate": "rate",
    "memory above idle": "memory",
    "memory, later": "memory_again",
}
_PARALLEL = {
    "delivered": "rate",
    "bare C-MOVEs": "bare_rate",
    "over a single one": "to_single",
    "over as many bare": "to_bare",
    "better of both": "kept",
    "slowest over fastest": "slowest",
    "memory": "memory",
}


def parallel(figures: Figures) -> str:
    """Many deliveries at once."""
    rows = []
    for pacs in _PACS:
        for number in figures.numbers(rf"{pacs}\.parallel\.(\d+)\.rate"):
            cells = [figures.cell(f"{pacs}.parallel.{number}.{each}") for each in _PARALLEL.values()]
            rows.append((pacs, number, *cells))
    targets = [f"{pacs}.parallel.{n}.kept" for pacs in _PACS for n in (3, 8, 10, 50)]
    head = [
        f"{name} ({figures.target(*targets)})" if key == "kept" else name for name, key in _PARALLEL.items()
    ]
    return table(("PACS", "at once", *head), rows)


def transcoding(figures: Figures) -> str:
    """Pairs of syntaxes, and a transcoded series."""
    workers = figures.numbers(r"transcode\..+\.(\d+)w\.rate")
    rows = []
    for pair in figures.numbers(r"transcode\.(.+)\.\d+w\.rate"):
        cells = []
        for number in workers:
            name = f"transcode.{pair}.{number}w"
            cells += [figures.cell(f"{name}.rate"), figures.cell(f"{name}.throughput")]
        rows.append((pair.replace("-", " → "), *cells, figures.cell(f"transcode.{pair}.scaling")))
    head = [
        f"{number} worker{'s' if number != '1' else ''}{unit}"
        for number in workers
        for unit in ("", ", MB/s")
    ]
    wide = table(("pair", *head, "scaling"), rows)
    more = [
        ("first transcoded image at the client", "transcoded.first_image"),
        ("a transcoded series at the client", "transcoded.rate"),
    ]
    return f"{wide}\n{_by_pacs(figures, more)}"


_DOOR = {
    "connections let in, every check (TLS 1.3)": "handshake",
    "the same in TLS 1.2": "tls12",
    "the same without revocation lists": "unlisted",
    "with a request and its answer, whitelist included": "asked",
}


def door(figures: Figures) -> str:
    """Handshakes."""
    rows = [
        (title, figures.cell(f"door.{name}.rate"), figures.cell(f"door.{name}.cpu"))
        for title, name in _DOOR.items()
    ]
    wide = table(("", "a second", "processor time of the gateway, each"), rows)
    more = [
        (
            "sessions offered that were resumed",
            figures.target("door.resumed"),
            figures.cell("door.resumed"),
        ),
        ("OpenSSL alone, both sides, full handshake", "", figures.cell("door.bare.full")),
        ("OpenSSL alone, both sides, resumed", "", figures.cell("door.bare.resumed")),
    ]
    return f"{feed_machine(figures)}\n{wide}\n{table(('', 'target', ''), more)}"


_HEALTH = {
    "**the gateway, over connections that stay open**": "kept",
    "… at rest, which is part of that": "rest",
    "… a new connection for each poll": "new",
    "a page of `twisted.web` behind TLS": "web",
    "Twisted's TLS and always the same bytes": "tls",
    "the same without TLS": "tcp",
}
_FLAT = {"kept": "gateway", "tls": "tls", "tcp": "tcp"}


def health(figures: Figures) -> str:
    """Polls of the weather service."""
    rows = [
        (
            title,
            figures.target(f"health.{name}.cpu"),
            figures.cell(f"health.{name}.cpu"),
            figures.cell(f"health.flat.{_FLAT[name]}") if name in _FLAT else "",
        )
        for title, name in _HEALTH.items()
    ]
    wide = table(("100 polls a second", "target", "of a core", "each, without a pause"), rows)
    more = [
        ("the gateway over Twisted's TLS and always the same bytes", figures.cell("health.kept.to_tls")),
        ("the gateway over a page of `twisted.web`", figures.cell("health.kept.to_web")),
    ]
    return f"{feed_machine(figures)}\n{wide}\n{table(('turn by turn', ''), more)}"


def missing(figures: Figures) -> str:
    """What the run does not have."""
    lines = [f"- failed: {each['name']}: {each['why']}" for each in figures.document["failed"]]
    lines += [f"- left out: {each['name']}: {each['why']}" for each in figures.document["left_out"]]
    return "\n".join(lines or ["Nothing failed, nothing was left out."]) + "\n"


def profile(figures: Figures) -> str:
    """Where the time goes."""
    document = figures.document
    native = document["native"]
    if "shares" in native:
        shares = [(kind, f"{100 * share:.0f} %") for kind, share in native["shares"].items()]
        above = table(("processor time of the gateway", "share"), shares)
    else:
        above = f"Not sampled from outside: {native['why']}.\n"
    python = document["python"]
    rows = [
        (f"`{each['name']}`", f"{100 * each['share']:.1f} %", f"{each['calls_per_image']:.1f}")
        for each in python["functions"]
    ]
    below = table(("function (its own time, under cProfile)", "share", "calls per image"), rows)
    count = f"{python['calls_per_image']:.0f} calls of functions, C ones included, for one image:"
    return f"{above}\n{count}\n\n{below}"


#: Each section: the run it is made of (`results/NAME.json`), and how.
SECTIONS: dict[str, tuple[str, Callable[[Figures], str]]] = {
    **{
        make.__name__: ("latest", make)
        for make in (machine, delivery, rivals, growth, parallel, transcoding, missing)
    },
    "profile": ("profile", profile),
    "door": ("door", door),
    "health": ("health", health),
    **{name: ("feed", make) for name, make in FEED_SECTIONS.items()},
    **{name: (name, make) for name, make in OWN_SECTIONS.items()},
}


def filled(text: str, runs: Mapping[str, dict[str, Any] | None]) -> str:
    """Return the document with every section made anew from the results of `runs`, by their names.

    Raises `KeyError` for a section nobody knows.
    """

    def section(match: re.Match[str]) -> str:
        run, make = SECTIONS[match[2]]
        results = runs.get(run)
        body = make(Figures(results)) if results is not None else f"Not measured (`results/{run}.json`).\n"
        return f"{match[1]}\n{body}\n{match[3]}"

    return _SECTION.sub(section, text)


def main() -> None:
    """Fill the document from `results/`; a file named takes the place of `latest.json`."""
    paths = {run: RESULTS / f"{run}.json" for run, _ in SECTIONS.values()}
    if len(sys.argv) > 1:
        paths["latest"] = Path(sys.argv[1])
    runs = {run: json.loads(path.read_text()) if path.exists() else None for run, path in paths.items()}
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), runs))
    print(f"{DOCUMENT} : chiffres de {', '.join(run for run, results in runs.items() if results)}")


if __name__ == "__main__":
    main()
