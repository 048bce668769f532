"""`python -m bench`: measure, print a table, write `bench/results/latest.json`.

Each PACS in turn is started and loaded, a gateway is started before it, then every measure of `MEASURES`
runs. A PACS or peer that is not installed is named and left out, a measure that fails is named with its
reason, and the run goes on: a figure is measured or absent, never made up. The exit status says whether
everything was measured that could be.

The feed (`--only feed`) is measured apart, without any PACS, and has results of its own: it takes longer
than all the rest. So are a whole archive at work (`--only scale`), the audit trail (`--only audit`), a
backup (`--only backup`), the door (`--only door`) and the polls of the weather service (`--only health`).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from bench.auditing import measure_audit
from bench.baseline import measure_receivers
from bench.door import measure_door
from bench.drain import measure_drain
from bench.feed import measure_bursts, measure_large_reports, measure_latency
from bench.first import measure_first
from bench.gateway import Gateway
from bench.growth import measure_growth, measure_memory, measure_tiny
from bench.health import measure_health
from bench.kosarchive import measure_archive
from bench.machine import describe, measure_again, measure_machine
from bench.native import measure_native
from bench.nodes import measure_nodes
from bench.parallel import measure_parallel
from bench.pipeline import measure_pipeline
from bench.plan import QUICK, Plan
from bench.results import Results
from bench.rivals import measure_dicomweb, measure_obvious
from bench.saving import measure_backup
from bench.scale import measure_scale
from bench.site import PACS_NAMES, Site, open_site
from bench.study import DATA, Studies, make_studies
from bench.transcoding import measure_codecs, measure_transcoded
from drimbox.sim.peers import PeerMissing

FOLDER = Path(__file__).parent / "results"
LATEST, QUICK_RUN, FEED_RUN = (FOLDER / f"{name}.json" for name in ("latest", "quick", "feed"))

#: Measures of one gateway before one PACS, all of the same one.
MEASURES: dict[str, Callable[[Site, Gateway], None]] = {
    "pipeline": measure_pipeline,
    "first": measure_first,
    "tiny": measure_tiny,
    "obvious": measure_obvious,
    "dicomweb": measure_dicomweb,
    "transcoded": measure_transcoded,
    "parallel": measure_parallel,
}
#: Measures of one PACS that start a gateway of their own, or none.
APART: dict[str, Callable[[Site], None]] = {
    "memory": measure_memory,
    "growth": measure_growth,
    "native": measure_native,
    "receivers": measure_receivers,
}
#: Made for the first PACS only: they say nothing of the others.
ONCE = frozenset({"memory", "native"})
#: Measures without a PACS.
ALONE = ("codecs",)
ALL = (*MEASURES, *APART, *ALONE)
#: Measures of the feed, all of which are meant by `feed`.
FEED: dict[str, Callable[[Results, Plan, Path], None]] = {
    "latency": measure_latency,
    "bursts": measure_bursts,
    "large-reports": measure_large_reports,
    "archive": measure_archive,
    "drain": measure_drain,
}
#: Measured when asked for alone, each with results of its own, called by its name.
BY_THEMSELVES: dict[str, Callable[[Results, Plan, Path], None]] = {
    "scale": measure_scale,
    "audit": measure_audit,
    "door": measure_door,
    "health": measure_health,
    "backup": measure_backup,
    "nodes": measure_nodes,
}


def measure_pacs(
    name: str, studies: Studies, plan: Plan, results: Results, wanted: frozenset[str], *, first: bool
) -> None:
    """Measure everything wanted on one PACS. Raises `PeerMissing` when it is not installed."""
    with (
        _folder(name) as folder,
        open_site(name, folder, studies, plan, results) as site,
    ):
        _say(f"{name} {site.pacs.version} chargé")
        names = [one for one in MEASURES if one in wanted]
        if names:
            with Gateway(folder / "gateway", site.pacs, port=site.gateway_port, pool=site.pool) as gateway:
                for one in names:
                    _attempt(results, f"{name}.{one}", partial(MEASURES[one], site, gateway))
        for one, measure in APART.items():
            if one in wanted and (first or one not in ONCE):
                _attempt(results, f"{name}.{one}", partial(measure, site))


def _attempt(results: Results, name: str, measure: Callable[[], None]) -> None:
    """Make one measure; what goes wrong with it costs no other."""
    _say(name)
    try:
        measure()
    except PeerMissing as missing:
        results.leave_out(name, f"{missing.program} absent (paquet {missing.package})")
    except Exception as error:
        results.fail(name, f"{type(error).__name__}: {error}")
        _say(f"{name} : échec, {error}")


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    DATA.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=DATA))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@click.command()
@click.option("--quick", is_flag=True, help="Petites tailles : vérifier que tout fonctionne.")
@click.option("--pacs", "names", multiple=True, type=click.Choice(PACS_NAMES), help="Tous par défaut.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice((*ALL, "feed", *FEED, *BY_THEMSELVES)),
    help="Mesures voulues ; par défaut toutes celles des livraisons.",
)
@click.option("--dcmtk/--no-dcmtk", default=True, help="Mesurer aussi le récepteur de DCMTK (une minute).")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Fichier JSON des résultats."
)
def main(
    quick: bool, names: tuple[str, ...], only: tuple[str, ...], dcmtk: bool, output: Path | None
) -> None:
    """Mesurer la passerelle et ce à quoi on la compare ; `--only feed` : l'alimentation."""
    plan = QUICK if quick else Plan(dcmtk=dcmtk)
    wanted = frozenset(FEED if "feed" in only else ()) | frozenset(only or ALL) - {"feed"}
    results = Results(quick=quick)
    _attempt(results, "machine", lambda: measure_machine(results))
    measured = measure_feed(results, plan, wanted)
    for name in BY_THEMSELVES:
        if name in wanted:
            measured += measure_alone(results, plan, name, BY_THEMSELVES[name])
    if wanted - FEED.keys() - BY_THEMSELVES.keys():
        measured += measure_deliveries(results, plan, wanted, names or PACS_NAMES)
    _attempt(results, "machine", lambda: measure_again(results))
    # A run that was not whole does not take the place of one that was.
    own = FEED_RUN if wanted == FEED.keys() else None
    if len(wanted) == 1 and wanted <= BY_THEMSELVES.keys():
        own = FOLDER / f"{next(iter(wanted))}.json"
    whole = own or (FOLDER / "partial.json" if names or only else LATEST)
    path = output or (QUICK_RUN if quick else whole)
    results.write(path, describe())
    print(results.table())
    _say(f"résultats dans {path}")
    if results.failed or not measured:
        sys.exit(1)


def measure_feed(results: Results, plan: Plan, wanted: frozenset[str]) -> int:
    """Measure what is wanted of the feed; return how many measures that was."""
    names = [name for name in FEED if name in wanted]
    for name in names:
        with _folder(name) as folder:
            _attempt(results, name, partial(FEED[name], results, plan, folder))
        # It takes half an hour: whoever cuts it short keeps what there is.
        results.write(FOLDER / "partial.json", describe())
    return len(names)


def measure_deliveries(results: Results, plan: Plan, wanted: frozenset[str], names: Sequence[str]) -> int:
    """Measure what is wanted before every PACS named; return how many of them were there."""
    _say("examens")
    studies = make_studies(plan)
    results.add("study.instances", len(studies.reference.instances), "images")
    results.add("study.size", studies.reference.size / 1e6, "MB")
    measured = 0
    for name in names:
        try:
            measure_pacs(name, studies, plan, results, wanted, first=not measured)
            measured += 1
        except PeerMissing as missing:
            results.leave_out(name, f"{missing.program} absent (paquet {missing.package})")
        except Exception as error:
            results.fail(name, f"{type(error).__name__}: {error}")
    if "codecs" in wanted:
        measure_alone(results, plan, "codecs", measure_codecs)
    return measured


def measure_alone(
    results: Results, plan: Plan, name: str, measure: Callable[[Results, Plan, Path], None]
) -> int:
    """Make a measure that needs no PACS; return 1."""
    with _folder(name) as folder:
        _attempt(results, name, lambda: measure(results, plan, folder))
    return 1


def _say(text: str) -> None:
    print(f"== {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
