"""Clients of the random histories: patient or not, quick or slow, staying or leaving at any moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from hypothesis import strategies as st
from twisted.internet.interfaces import IDelayedCall

from drimbox.dicom.pdu import Buffer
from drimbox.source.attempt import Delivered
from drimbox.wado.accept import Acceptable, parse
from drimbox.wado.multipart import End as Closed
from drimbox.wado.multipart import MultipartParser, PartBegin, PartData, PartEnd, boundary_of
from tests.properties.holdings import EXPLICIT, JPEG_LS, SERIES, Held
from tests.properties.network import Network

_RANGE = 'multipart/related; type="application/dicom"; transfer-syntax={}; q={}'
#: Bytes written beyond which a slow client's connection is full.
_FULL = 3000


def _accept(*ranges: tuple[str, float]) -> Acceptable:
    return parse(_RANGE.format(*each).encode() for each in ranges)


ACCEPTS = {
    "any": _accept(("*", 1)),
    "both": _accept((EXPLICIT, 1), (JPEG_LS, 0.5)),
    "plain": _accept((EXPLICIT, 1)),
    "compressed": _accept((JPEG_LS, 1)),
}


@attrs.frozen
class Wish:
    """What one client asks for, and how it behaves."""

    series: int = 0
    #: One instance of it, by its place; None for all.
    instance: int | None = None
    at: float = 0.0
    accept: str = "any"
    #: Bytes a second it reads; None at once, 0 never.
    speed: float | None = None
    #: When it leaves: so many seconds after it asked, or once so many bytes have come.
    leaves_after: float | None = None
    leaves_at: int | None = None

    @property
    def held(self) -> Held:
        """The series."""
        return SERIES[self.series % len(SERIES)]

    @property
    def instance_uid(self) -> str | None:
        """The instance, when only one is wanted."""
        instances = self.held.instances
        return None if self.instance is None else instances[self.instance % len(instances)].uid

    @property
    def due(self) -> frozenset[str] | None:
        """What a complete answer must hold; None when nobody knows."""
        wanted, due = self.instance_uid, self.held.due
        return due if wanted is None or due is None else due & {wanted}

    @property
    def allowed(self) -> frozenset[str]:
        """What an answer may hold."""
        wanted = self.instance_uid
        return self.held.allowed if wanted is None else self.held.allowed & {wanted}

    @property
    def servable(self) -> bool:
        """Whether the KOS promises something, and the PACS has it."""
        if self.due is None:
            # Where only counts can tell, one of many does not look whole.
            return self.instance is None
        return bool(self.due) and self.due <= self.allowed

    @property
    def patient(self) -> bool:
        """True when it stays, and reads."""
        return self.leaves_after is None and self.leaves_at is None and self.speed != 0


@attrs.frozen
class Part:
    """One part of an answer."""

    syntax: str
    data: bytes
    #: False for the last one of an answer that was cut.
    whole: bool


class Client:
    """One answer as it comes out of the gateway (an `attempt.Answer`)."""

    def __init__(self, wish: Wish, net: Network) -> None:
        self.wish = wish
        self.net = net
        self.result: Delivered | None = None
        self.content_type = ""
        self.output = bytearray()
        self.finished = self.aborted = self.gone = False
        #: Receivers that the gateway made for it.
        self.receivers: list[Any] = []
        self._unread = 0
        self._full = False
        self._reading: IDelayedCall | None = None
        self._leaving: IDelayedCall | None = None
        self._pause: Callable[[], None] = lambda: None
        self._resume: Callable[[], None] = lambda: None
        self._lost: Callable[[], None] = lambda: None
        if wish.leaves_after is not None:
            self._leaving = net.callLater(wish.at + wish.leaves_after, self.leave)

    # -- Answer --------------------------------------------------------------------------------------

    def listen(
        self, *, pause: Callable[[], None], resume: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        self._pause, self._resume, self._lost = pause, resume, lost
        if self.gone:
            lost()
        elif self._full:
            pause()

    def start(self, content_type: str) -> None:
        assert not self.content_type, "status sent twice"
        self.content_type = content_type

    def write(self, *pieces: Buffer) -> None:
        data = b"".join(pieces)
        assert self.content_type, "bytes before the status"
        assert not self.finished, "bytes after the end"
        assert not self.aborted, "bytes after the cut"
        if self.gone:
            return
        self.output += data
        if self.wish.speed is not None:
            self._unread += len(data)
            if self._unread > _FULL and not self._full:
                self._full = True
                if self.wish.speed:
                    self._reading = self.net.callLater(self._unread / self.wish.speed, self._read)
                self._pause()
        if (
            self.wish.leaves_at is not None
            and len(self.output) >= self.wish.leaves_at
            and not self._leaving
        ):
            self._leaving = self.net.callLater(0, self.leave)

    def finish(self) -> None:
        assert not self.finished, "ended twice"
        assert not self.aborted, "ended after the cut"
        self.finished = True

    def abort(self) -> None:
        assert not self.finished, "cut after the end"
        self.aborted = True

    # -- own -----------------------------------------------------------------------------------------

    def _read(self) -> None:
        self._unread, self._full = 0, False
        if not self.gone and self.result is None:
            self._resume()

    def leave(self) -> None:
        """Close the connection."""
        if self.result is None and not self.gone:
            self.gone = True
            self._lost()

    def over(self, result: Delivered) -> None:
        """The gateway is done with the request."""
        self.result = result
        for call in (self._reading, self._leaving):
            if call is not None and call.active():
                call.cancel()

    @property
    def live(self) -> bool:
        """True while the answer may still become complete."""
        return self.result is None and not self.gone and not self.aborted

    def read(self) -> tuple[list[Part], bool]:
        """Return the parts that came, and whether the closing delimiter did."""
        if not self.content_type:
            return [], False
        parser = MultipartParser(boundary_of(self.content_type.encode()))
        parts: list[Part] = []
        head: PartBegin | None = None
        data = bytearray()
        closed = False
        for event in parser.feed(bytes(self.output)):
            if isinstance(event, PartBegin):
                head, data = event, bytearray()
            elif isinstance(event, PartData):
                data += event.data
            elif isinstance(event, PartEnd):
                assert head is not None
                parts.append(Part(head.transfer_syntax or "", bytes(data), True))
                head = None
            elif isinstance(event, Closed):
                closed = True
        if head is not None:
            parts.append(Part(head.transfer_syntax or "", bytes(data), False))
        return parts, closed


PATIENT = st.builds(
    Wish,
    series=st.integers(0, len(SERIES) - 1),
    instance=st.sampled_from((None, None, None, None, 0, 1, 4)),
    at=st.sampled_from((0.0, 0.0, 0.3, 2.0, 9.0, 30.0)),
    accept=st.sampled_from(tuple(ACCEPTS)),
    speed=st.sampled_from((None, None, 20_000.0, 2_000.0)),
)
ANY = st.builds(
    Wish,
    series=st.integers(0, len(SERIES) - 1),
    instance=st.sampled_from((None, None, None, None, 0, 1, 4)),
    at=st.sampled_from((0.0, 0.0, 0.3, 2.0, 9.0, 30.0)),
    accept=st.sampled_from(tuple(ACCEPTS)),
    speed=st.sampled_from((None, None, None, 20_000.0, 2_000.0, 0.0)),
    leaves_after=st.sampled_from((None, None, None, 0.0, 0.001, 0.05, 0.5, 3.0)),
    leaves_at=st.sampled_from((None, None, None, 1, 1000, 5000)),
)
