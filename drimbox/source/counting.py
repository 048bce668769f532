"""What the statistics count of a request for images (STF07 to STF11).

Whose it is, the manifest says; without one it is that of `structure`, the only one of the site.
"""

from __future__ import annotations

from drimbox.errors import DrimboxError
from drimbox.ports import Count
from drimbox.source.attempt import Delivered
from drimbox.wado.request import ImagesRequest

#: Code of a request for one instance where none are served.
_ONE_INSTANCE = "E1105"


def of_delivery(request: ImagesRequest, result: Delivered, structure: str) -> list[Count]:
    """Return the events of a request for a series; one for a single instance counts nowhere."""
    if request.instance_uid is not None:
        return []
    site, structure = result.site, result.kos.structure_id if result.kos is not None else structure
    return [
        Count("STF07" if result.error is None else "STF08", structure, site),
        *(Count("STF09", structure, site, syntax, count) for syntax, count in result.syntaxes.items()),
        Count("STF10", structure, site, result.modality, result.instances),
        Count("STF11", structure, site, amount=result.bytes),
    ]


def of_interruption(request: ImagesRequest, result: Delivered, structure: str) -> list[Count]:
    """Return the event of a request whose delivery the process did not survive: what left is not known."""
    if request.instance_uid is not None:
        return []
    return [Count("STF08", result.kos.structure_id if result.kos is not None else structure, result.site)]


def of_refusal(site: str, structure: str, study_uid: str, error: DrimboxError) -> list[Count]:
    """Return the event of a request that got no further than the door, when it asked for a series."""
    return [Count("STF08", structure, site)] if study_uid and error.code != _ONE_INSTANCE else []
