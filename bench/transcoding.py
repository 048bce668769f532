"""What transcoding costs: each pair of syntaxes in the worker pool, and a transcoded series at the client.

Figures:
- `transcode.A-B.Ww.rate`, `transcode.A-B.Ww.throughput`: instances and decoded MB a second from syntax A
  to syntax B with W workers (A and B as in `bench.codecs`: `80` is JPEG-LS lossless, and so on);
  `transcode.A-B.scaling`: with the most workers over with one;
- for a PACS named P, which holds JPEG-LS, and a client that takes only JPEG lossless (`.70`), workers
  warm: `P.transcoded.first_image`, `P.transcoded.rate`, instances a second at the client.
"""

from __future__ import annotations

from pathlib import Path

from bench.codecs import PAIRS
from bench.consumers import Delivery, fetch
from bench.gateway import Gateway
from bench.pipeline import middle
from bench.plan import Plan
from bench.program import Program
from bench.results import Results
from bench.site import Site
from drimbox.dicom.syntaxes import JPEG_LOSSLESS_SV1


def measure_codecs(results: Results, plan: Plan, folder: Path) -> None:
    """Measure every pair with each number of workers."""
    rates: dict[tuple[str, int], float] = {}
    for workers in plan.workers:
        limit = 60 + len(PAIRS) * (plan.codec_seconds + 20)
        with Program("bench.codecs", log=folder / f"codecs-{workers}.log", timeout=limit) as program:
            answer = program.ask(workers=workers, seconds=plan.codec_seconds, pairs=PAIRS)
        for pair in answer["pairs"]:
            name = f"transcode.{pair['source']}-{pair['target']}"
            if "problem" in pair:
                results.fail(f"{name}.{workers}w", pair["problem"])
                continue
            rates[name, workers] = pair["rate"]
            results.add(f"{name}.{workers}w.rate", pair["rate"], "images/s")
            results.add(f"{name}.{workers}w.throughput", pair["bytes_per_second"] / 1e6, "MB/s")
    one, most = min(plan.workers), max(plan.workers)
    for source, target in PAIRS:
        name = f"transcode.{source}-{target}"
        if (name, one) in rates and (name, most) in rates:
            results.add(f"{name}.scaling", rates[name, most] / rates[name, one], "ratio")


def measure_transcoded(site: Site, gateway: Gateway) -> None:
    """Measure a series that is transcoded on its way."""
    study = site.studies.slow
    # Well above an empty answer; how long a transcoded one is depends on its content.
    least = 50_000 * len(study.instances)

    def once() -> Delivery:
        return fetch(gateway.order(study, syntax=JPEG_LOSSLESS_SV1), site.folder, at_least=least)

    once()  # the workers load their codecs
    deliveries = [once() for _ in range(site.plan.repeat)]
    site.add("transcoded.first_image", middle(deliveries, lambda one: one.first), "s")
    whole = middle(deliveries, lambda one: one.seconds)
    site.add("transcoded.rate", len(study.instances) / whole, "images/s")
