"""The first image: what the gateway adds to the PACS's own time before anything is there.

Figures, for a PACS named P, medians over deliveries of the reference study:
- `P.first_image`: from the request to the last byte of the first part at the client (T2-T1);
- `P.first_image_after_store`: from the PACS's first C-STORE byte to that same last byte;
- `P.first_store`: from the request to the PACS's first C-STORE byte: token, KOS, C-MOVE, and the PACS's
  own time until it sends. What is left of `P.first_image` is ours and the wire's.

The first is measured on the gateway as it is; the two others with the tap (`bench.tap`) between PACS and
gateway, whose AE titles then are others.
"""

from __future__ import annotations

import statistics

from bench.consumers import fetch
from bench.gateway import Gateway
from bench.pipeline import deliver, middle
from bench.program import Program
from bench.site import TAPPED_POOL, Site
from drimbox.sim.peers import free_port


class NotSeen(Exception):
    """The tap did not see exactly one first C-STORE during a delivery."""


def measure_first(site: Site, gateway: Gateway) -> None:
    """Measure the first image, without and with the tap."""
    study, repeat = site.study, site.plan.repeat_first
    deliver(site, gateway, study)
    plain = [deliver(site, gateway, study) for _ in range(repeat)]
    site.add("first_image", middle(plain, lambda one: one.first), "s")
    port = free_port()
    stores, images = [], []
    with (
        Program("bench.tap", str(site.tap_port), str(port), log=site.folder / "tap.log") as tap,
        Gateway(site.folder / "tapped", site.pacs, port=port, pool=TAPPED_POOL) as tapped,
    ):
        tap.read()
        deliver(site, tapped, study)
        for _ in range(repeat):
            order = tapped.order(study)
            tap.ask(report=True)  # what the publication and earlier deliveries left
            delivery = fetch(order, site.folder, at_least=study.size)
            instants = tap.ask(report=True)["instants"]
            if len(instants) != 1:
                raise NotSeen(f"{len(instants)} first C-STORE requests seen in one delivery")
            stores.append(instants[0] - delivery.started_at)
            images.append(delivery.first_at - instants[0])
    site.add("first_store", statistics.median(stores), "s")
    site.add("first_image_after_store", statistics.median(images), "s")
