"""`python -m bench`: measure, print a table, write `bench/results/latest.json`.

Each PACS in turn is started and loaded with the reference study, then every measure of `measure` runs
on it. A PACS that is not installed is named and left out: its figures are absent, never invented.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from bench.baseline import measure_floor, measure_others
from bench.pipeline import measure_pipeline
from bench.results import Results
from bench.site import PACS_NAMES, Site, open_site
from bench.study import DATA, reference_study
from drimbox.sim.peers import PeerMissing
from drimbox.sim.studies import REFERENCE_INSTANCES

LATEST = Path(__file__).parent / "results" / "latest.json"


def measure(site: Site, *, dcmtk: bool, everything: bool, memory: bool) -> None:
    """Run every measure on one PACS; the floor first, since ratios divide by it."""
    measure_floor(site)
    measure_pipeline(site, memory=memory)
    measure_others(site, dcmtk=dcmtk, everything=everything)


@click.command()
@click.option("--instances", default=REFERENCE_INSTANCES, show_default=True, help="Images de l'étude.")
@click.option("--pacs", "names", multiple=True, type=click.Choice(PACS_NAMES), help="Tous par défaut.")
@click.option("--repeat", default=3, show_default=True, help="Répétitions (médiane retenue).")
@click.option("--dcmtk/--no-dcmtk", default=True, help="Mesurer aussi le récepteur de DCMTK (lent).")
@click.option("--all", "everything", is_flag=True, help="Mesurer aussi storescp (lent).")
@click.option(
    "--output", default=LATEST, type=click.Path(dir_okay=False, path_type=Path), show_default=True
)
def main(
    instances: int, names: tuple[str, ...], repeat: int, dcmtk: bool, everything: bool, output: Path
) -> None:
    """Mesurer la passerelle et ce à quoi on la compare."""
    results = Results()
    _say(f"étude de référence : {instances} images")
    study = reference_study(instances)
    _say(f"{study.size / 1e6:.0f} Mo dans {study.folder}")
    results.add("study.instances", instances, "images")
    results.add("study.size", study.size / 1e6, "MB")
    measured = 0
    for name in names or PACS_NAMES:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=DATA))
        try:
            with open_site(name, folder, study, results, max(1, repeat)) as site:
                _say(f"{name} {site.pacs.version} chargé ; mesures en cours")
                measure(site, dcmtk=dcmtk, everything=everything, memory=not measured)
                measured += 1
        except PeerMissing as missing:
            _say(f"{name} absent (paquet {missing.package}) : non mesuré")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    results.write(output)
    print(results.table())
    _say(f"résultats dans {output}")
    if not measured:
        sys.exit(1)


def _say(text: str) -> None:
    print(f"== {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
