"""Transcoding on the way: what the client does not take as the PACS sends it (DB.CS.83, DB.SO.85).

An instance is kept whole, handed to the codec workers, and sent when it comes back, in its place: images
keep their order of arrival while several are being encoded. Few of one delivery are with the workers at a
time; those that wait count as memory of the answer, so that the PACS is slowed instead of us growing.

A codec that fails costs the answer, never the gateway: the next acceptable syntax is tried, then the
answer is refused, or cut when it had begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.dicom.elements import Buffer, DatasetRefused
from drimbox.dicom.pixels import read_image_facts
from drimbox.dicom.syntaxes import offered_text
from drimbox.dicom.targets import candidates, producible
from drimbox.dicom.transcoding import TranscodeFailed, Transcoder
from drimbox.errors import ImageError, NotAcceptable, TooManyRequests
from drimbox.source.outflow import Outflow
from drimbox.source.parts import CollectedPart
from drimbox.wado.accept import Acceptable

#: Instances of one delivery with the workers at a time.
_AT_ONCE = 4


class Conversion:
    """Transcodes the instances of one answer, in order. `refuse` ends the answer with an error."""

    log = Logger()

    def __init__(
        self,
        transcoder: Transcoder,
        acceptable: Acceptable,
        outflow: Outflow,
        refuse: Callable[[ImageError], None],
    ) -> None:
        self._transcoder = transcoder
        self._acceptable = acceptable
        self._outflow = outflow
        self._refuse = refuse
        self._waiting: deque[CollectedPart] = deque()
        self._running: set[Deferred[None]] = set()
        self._closed = False

    def add(self, part: CollectedPart) -> None:
        """Take an instance that has been received whole."""
        self._waiting.append(part)
        self._next()

    def close(self) -> None:
        """Give up what is not done: nobody waits for it any more."""
        self._closed = True
        self._waiting.clear()
        for work in list(self._running):
            work.cancel()

    def _next(self) -> None:
        while self._waiting and len(self._running) < _AT_ONCE and not self._closed:
            work = Deferred.fromCoroutine(self._convert(self._waiting.popleft()))
            work.addErrback(self._failed)
            if work.called:
                continue
            self._running.add(work)
            work.addBoth(self._done, work)

    def _done(self, result: object, work: Deferred[None]) -> None:
        self._running.discard(work)
        self._next()

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self.log.failure("transcoding broke", failure=failure)
            self._refuse(ImageError("transcodage interrompu"))

    async def _convert(self, part: CollectedPart) -> None:
        dataset = part.taken()
        try:
            facts = read_image_facts(dataset, part.source)
        except DatasetRefused as error:
            self.log.warn("instance not transcoded: {problem}", problem=str(error))
            self._refuse(ImageError("image illisible, transcodage impossible"))
            return
        targets = candidates(part.source, self._acceptable, facts)
        if not targets:
            self._refuse(NotAcceptable(offered_text((part.source, *producible(part.source, facts)))))
            return
        if targets[0] == part.source:
            self._send(part, part.source, dataset)
            return
        try:
            done = await self._transcoder.transcode_to_first(dataset, part.source, targets)
        except TranscodeFailed as error:
            self.log.warn("instance not transcoded: {problem}", problem=str(error))
            if error.result == "busy":
                self._refuse(TooManyRequests("transcodage saturé", retry_after=10))
            else:
                self._refuse(ImageError("transcodage impossible"))
            return
        if not self._closed:
            self._send(part, done.syntax, done.data)

    def _send(self, part: CollectedPart, syntax: str, dataset: Buffer) -> None:
        try:
            chunks = part.converted(syntax, memoryview(dataset))
        except DatasetRefused as error:
            self.log.warn("traits not written: {problem}", problem=str(error))
            self._refuse(ImageError("traits INS impossibles à écrire"))
            return
        # In this order: room that came free sends whatever is ready, and this part says that it is.
        self._outflow.push(part, chunks)
        self._outflow.weigh(-part.weighed)
