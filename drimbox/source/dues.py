"""What a KOS promises of each of its series, read once a KOS.

Reading the manifest of a large study takes 25 ms, and a Consumer asks for its series one after the
other: the bytes are read in a thread, and the lists of the last studies asked for are kept. A KOS never
changes under its number: another content is another KOS.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

import attrs

from drimbox.errors import ImageError, KosUnknown
from drimbox.kos.reading import ManifestRefused, read_manifest
from drimbox.model import Patient
from drimbox.ports import ArchivedKos

#: Instances remembered, some 100 bytes each.
_MAX_INSTANCES = 200_000


@attrs.frozen
class Promise:
    """What a KOS says that a delivery holds the PACS to."""

    #: Instances by series.
    series: Mapping[str, frozenset[str]]
    patient: Patient
    #: Modality by series, as far as its text says.
    modalities: Mapping[str, str] = attrs.field(factory=dict)


def promise_of(data: bytes) -> Promise:
    """Read a manifest. Raises `ManifestRefused`."""
    manifest = read_manifest(data)
    lists = {
        series.series_uid: frozenset(instance.sop_instance_uid for instance in series.instances)
        for series in manifest.series
    }
    modalities = {series.series_uid: series.modality for series in manifest.series}
    return Promise(lists, manifest.patient, modalities)


class Dues:
    """The lists of the KOS asked for last.

    `load` returns a KOS of the archive with its bytes, `in_thread` runs a function off the reactor.
    """

    def __init__(
        self,
        load: Callable[[int], Awaitable[ArchivedKos]],
        in_thread: Callable[[Callable[[], Promise]], Awaitable[Promise]],
    ) -> None:
        self._load = load
        self._in_thread = in_thread
        self._kept: OrderedDict[int, Promise] = OrderedDict()
        self._count = 0

    async def of(self, kos_id: int, series_uid: str) -> frozenset[str]:
        """Return what the KOS lists of a series; a series it does not list is not served.

        Raises `KosUnknown` (E1001), `ImageError` when the archived KOS cannot be read.
        """
        due = (await self._promise(kos_id)).series.get(series_uid)
        if due is None:
            raise KosUnknown("série absente du KOS")
        return due

    async def modality(self, kos_id: int, series_uid: str) -> str:
        """Return what the KOS says made a series, empty when it does not.

        Raises `ImageError` when the archived KOS cannot be read.
        """
        return (await self._promise(kos_id)).modalities.get(series_uid, "")

    async def patient(self, kos_id: int) -> Patient:
        """Return whose KOS it is. Raises `ImageError` when the archived KOS cannot be read."""
        return (await self._promise(kos_id)).patient

    async def _promise(self, kos_id: int) -> Promise:
        promise = self._kept.get(kos_id)
        if promise is not None:
            self._kept.move_to_end(kos_id)
            return promise
        kos = await self._load(kos_id)
        try:
            promise = await self._in_thread(lambda: promise_of(kos.data))
        except ManifestRefused as error:
            raise ImageError("KOS archivé illisible") from error
        self._keep(kos_id, promise)
        return promise

    def _keep(self, kos_id: int, promise: Promise) -> None:
        if kos_id in self._kept:
            return
        self._kept[kos_id] = promise
        self._count += _size(promise)
        while self._count > _MAX_INSTANCES:
            _, oldest = self._kept.popitem(last=False)
            self._count -= _size(oldest)


def _size(promise: Promise) -> int:
    return sum(len(instances) for instances in promise.series.values())
