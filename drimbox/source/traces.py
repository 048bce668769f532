"""The audit record of one delivery, from before its first byte to its end (DB.SO.46, DB.SO.47)."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from drimbox.ports import AuditEvent, OpenRecords
from drimbox.source import counting
from drimbox.source.attempt import Delivered
from drimbox.source.clearance import Clearance
from drimbox.wado.request import ImagesRequest


class Trace:
    """Writes the record of one request twice: as far as it is known when images may leave, and at the end.

    `describe` makes the audit message of what is known so far; `structure` is the only one of the site.
    """

    def __init__(
        self,
        records: OpenRecords,
        request: ImagesRequest,
        describe: Callable[[Delivered], AuditEvent],
        structure: str = "",
    ) -> None:
        self._records = records
        self._request = request
        self._describe = describe
        self._structure = structure
        self._key = uuid.uuid4().hex
        self._clearance: Clearance | None = None
        #: What is known of a delivery that has begun.
        self.result: Delivered | None = None

    def begin(self, result: Delivered) -> Clearance:
        """Have the record opened: who asks, and for what, is known. Nothing may leave before it is."""
        self.result = result
        counts = counting.of_interruption(self._request, result, self._structure)
        self._clearance = Clearance(self._records.begin(self._key, self._describe(result), counts))
        return self._clearance

    async def end(self, result: Delivered) -> None:
        """Record how it ended. Raises what the store raises, only when nothing can have left."""
        begun = self._clearance is not None and await self._clearance.settled()
        counts = counting.of_delivery(self._request, result, self._structure)
        await self._records.end(self._key, self._describe(result), counts, begun=begun)
