"""Clients that leave a gateway at every state of a request, each along a lane with a PACS of its own.

A lane is a thread, a simulated PACS and a site: what the PACS notes is about this lane's request, or one
it left behind. Nothing sleeps for a time and hopes: a client leaves once the PACS, Pro Santé Connect, the
metrics or its own bytes say that the state is reached. The lane does not wait for the gateway to tidy up
before it asks again, so that a new request often meets the remains of the one before.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from itertools import takewhile
from typing import Any
from urllib.parse import parse_qs

import attrs
from twisted.internet import reactor

from drimbox.sim.pacs import SimulatedPacs
from tests.integration.clients import Client, Ended, leave_in_handshake
from tests.integration.hospital import ACCEPT, ANY, Hospital, Served, behave, digests
from tests.integration.probe import Probe

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
_PATIENCE = 60.0


@attrs.define
class Watched:
    """One C-MOVE as the PACS lived it."""

    destination: str
    study: str = ""
    happened: set[str] = attrs.field(factory=set)
    over: bool = False


class WatchedPacs(SimulatedPacs):
    """Watches each move instead of keeping everything, lets threads wait, and judges the destinations.

    Two moves to one AE title at once would be a title leased before the old move was over.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._news = threading.Condition()
        self._watched: deque[Watched] = deque(maxlen=64)
        self._watched_now: dict[int, Watched] = {}
        #: Final statuses; what was noted, by kind; moves that met another one on their AE title.
        self.finals: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self.overlaps = 0
        super().__init__(*arguments, **more)

    def note(self, kind: str, **details: Any) -> None:
        """Count, and put it down to its move: all notes of a move come from one thread."""
        with self._news:
            self.counts[kind] += 1
            move = self._watched_now.get(threading.get_ident())
            if move is not None:
                move.happened.add(kind)
                if kind == "move":
                    move.study = str(details["identifier"].StudyInstanceUID)
                    self._watched.append(move)
                if kind == "final":
                    # From here on the gateway may use the title again.
                    move.over = True
                    self.finals[details["status"]] += 1
                if kind == "stored" and details["status"] != 0:
                    self.counts["refused"] += 1
            self._news.notify_all()

    def serve_move(self, association: Any, request: Any, context_id: int) -> None:
        """Serve, and look whether the destination was still in use."""
        move = Watched(str(request.MoveDestination).strip())
        with self._news:
            others = self._watched_now.values()
            self.overlaps += any(not each.over and each.destination == move.destination for each in others)
            self._watched_now[threading.get_ident()] = move
        try:
            super().serve_move(association, request, context_id)
        finally:
            with self._news:
                del self._watched_now[threading.get_ident()]

    def last(self) -> Watched | None:
        """Return the newest move."""
        with self._news:
            return self._watched[-1] if self._watched else None

    def wait(self, study: str, after: Watched | None, kind: str) -> None:
        """Wait until something has happened in a move of this study newer than `after`."""

        def there() -> bool:
            newer = takewhile(lambda each: each is not after, reversed(self._watched))
            return any(each.study == study and kind in each.happened for each in newer)

        with self._news:
            done = self._news.wait_for(there, _PATIENCE)
        assert done, f"{self.ae_title}: no {kind!r} in {_PATIENCE} s"


class HeldIntrospection:
    """Keeps Pro Santé Connect from answering about chosen tokens until told to."""

    def __init__(self, hospital: Hospital) -> None:
        self._hospital = hospital
        self._usual = hospital.stand.psc.answer
        self._held: dict[str, tuple[threading.Event, list[Any]]] = {}
        setattr(hospital.stand.psc, "answer", self._answer)  # noqa: B010

    def hold(self, token: str) -> threading.Event:
        """Hold a token; the event says that the gateway has asked about it."""
        asked = threading.Event()
        self._held[token] = (asked, [])
        return asked

    def let_go(self, token: str) -> None:
        """Answer."""
        _, waiting = self._held.pop(token)
        turn: Any = reactor
        for web_request, request in waiting:
            turn.callFromThread(self._usual, web_request, request)

    def _answer(self, web_request: Any, request: Any) -> None:
        token = parse_qs(request.body.decode("ascii", "replace")).get("token", [""])[0]
        held = self._held.get(token)
        if held is None:
            self._usual(web_request, request)
            return
        held[1].append((web_request, request))
        held[0].set()


@attrs.frozen
class Holding:
    """What the PACS of one lane holds."""

    #: Four small images; one long enough to be received for a while; JPEG-LS that takes time to recode.
    small: Served
    long: Served
    coded: Served


class Lane:
    """One request after the other, each left at the state asked for."""

    def __init__(
        self,
        hospital: Hospital,
        site: int,
        pacs: WatchedPacs,
        holding: Holding,
        context: Any,
        held: HeldIntrospection,
        seed: int,
    ) -> None:
        self._hospital, self._site, self._pacs = hospital, site, pacs
        self.holding, self._context, self._held = holding, context, held
        self._probe = Probe(hospital)
        self._chance = random.Random(seed)
        #: Requests made, by state.
        self.made: Counter[str] = Counter()
        self.states: dict[str, Callable[[], None]] = {
            "in the handshake": self.in_the_handshake,
            "in the request": self.in_the_request,
            "during introspection": self.during_introspection,
            "waiting for a title": self.waiting_for_a_title,
            "before the first image": self.before_the_first_image,
            "between images": self.between_images,
            "inside an image": self.inside_an_image,
            "paused": self.paused,
            "spooled": self.spooled,
            "before the closing boundary": self.before_the_closing_boundary,
            "transcoding": self.transcoding,
            "stubborn PACS": self.stubborn_pacs,
            "not at all": self.not_at_all,
        }

    def go(self, state: str) -> None:
        """Make a request and leave it at this state."""
        before = sum(self.made.values())
        try:
            self.states[state]()
        except (Ended, OSError, AssertionError) as problem:
            raise AssertionError(f"client to leave {state}: {problem!r}") from problem
        if sum(self.made.values()) == before:
            self.made[state] += 1

    # -- the states --------------------------------------------------------------------------------

    def in_the_handshake(self) -> None:
        how = self._chance.choice(["silence", "hello", "after hello", "answer"])
        leave_in_handshake(self._hospital, self._context, how, site=self._site, reset=self._reset())

    def in_the_request(self) -> None:
        request = self._request(self.holding.small)
        with self._client() as client:
            client.send(request[: self._chance.choice([0, 1, len(request) // 2, len(request) - 2])])
            client.leave(reset=self._reset())

    def during_introspection(self) -> None:
        token = self._hospital.stand.token()
        asked = self._held.hold(token)
        try:
            client = self._ask(self.holding.small, token=token)
            assert asked.wait(_PATIENCE), "no introspection"
            client.leave(reset=self._reset())
        finally:
            self._held.let_go(token)

    def waiting_for_a_title(self) -> None:
        """Every title of the lane is taken, two more requests wait; all leave, in any order."""
        self._pacs.behaviour = behave(move_delay=0.2)
        clients = [self._client() for _ in range(4)]
        with ExitStack() as stack:
            for client in clients:
                stack.enter_context(client)
                client.send(self._request(self.holding.small))
            name = f'drimbox_pool_waiting{{pacs="PACS{self._site + 1}"}}'
            self._until(lambda: self._probe.gauges()[name] >= 2, "two requests waiting")
            self._chance.shuffle(clients)
            for client in clients:
                client.leave(reset=self._reset())
        self.made["waiting for a title"] += 4

    def before_the_first_image(self) -> None:
        self._pacs.behaviour = behave(move_delay=0.1)
        self._leave_after("move", self.holding.small)

    def between_images(self) -> None:
        self._pacs.behaviour = behave(pause=0.1)
        wanted = self._chance.choice([1, 2])
        client = self._ask(self.holding.small)
        client.read_until(lambda: len(client.digests) >= wanted)
        client.leave(reset=self._reset())

    def inside_an_image(self) -> None:
        """The image is larger than the window and all buffers: the PACS is in the middle of it."""
        self._pacs.behaviour = behave()
        client = self._ask(self.holding.long)
        client.read_until(lambda: client.received > 20_000)
        client.leave(reset=self._reset())

    def paused(self) -> None:
        """Nothing is read: the gateway holds what it may, and lets the PACS wait."""
        self._pacs.behaviour = behave()
        client = self._ask(self.holding.long)
        names = ("drimbox_window_bytes", "drimbox_spool_bytes")
        self._until(lambda: any(map(self._probe.gauges().get, names)), "bytes held")
        client.leave(reset=self._reset())

    def spooled(self) -> None:
        """Nothing is read, the PACS has sent everything: it waits in window and spool."""
        self._pacs.behaviour = behave()
        self._leave_after("final", self.holding.long)

    def before_the_closing_boundary(self) -> None:
        """The client has every image, the PACS has not said that it is done."""
        self._pacs.behaviour = behave(pause=0.1)
        self.leave_after_all_images()

    def leave_after_all_images(self) -> None:
        """Leave with the last byte of the last image, whatever the PACS does."""
        client = self._ask(self.holding.small)
        before = len(self.holding.small.study.instances) - 1
        # The end of a part is known by the boundary after it; all images here are as long.
        client.read_until(
            lambda: len(client.digests) == before and client.unfinished > client.sizes[-1] - 100
        )
        assert not client.complete
        client.leave(reset=self._reset())

    def transcoding(self) -> None:
        """An image has been taken from the PACS and is being encoded."""
        self._pacs.behaviour = behave(propose="stored")
        self._leave_after("stored", self.holding.coded, accept=ACCEPT.format(JPEG_LOSSLESS))

    def stubborn_pacs(self) -> None:
        """The PACS does not stop at C-CANCEL, or never says that it has: grace, abort, quarantine."""
        self._pacs.behaviour = self._chance.choice(
            [behave(pause=0.25, ignore_cancel=True), behave(final="never")]
        )
        client = self._ask(self.holding.small)
        client.read_until(lambda: len(client.digests) >= 1)
        client.leave(reset=self._reset())

    def not_at_all(self) -> None:
        """A client that stays gets everything, whatever was before it."""
        self._pacs.behaviour = behave()
        with self._ask(self.holding.small) as client:
            client.read_all()
            assert client.complete, (client.status, client.error)
            assert set(client.digests) == set(digests(self.holding.small.study).values())

    # -- own ---------------------------------------------------------------------------------------

    def _reset(self) -> bool:
        return self._chance.random() < 0.5

    def _client(self) -> Client:
        return Client(self._hospital, self._context, site=self._site)

    def _request(self, served: Served, *, token: str = "", accept: str = ANY) -> bytes:
        lines = [
            f"GET {served.path()} HTTP/1.1",
            f"Host: {self._hospital.stand.sites[self._site]}",
            f"Accept: {accept}",
            f"Authorization: Bearer {token or self._hospital.stand.token()}",
            f"KOS-SOPInstanceUID: {served.kos}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _ask(self, served: Served, **how: str) -> Client:
        client = self._client()
        client.send(self._request(served, **how))
        return client

    def _leave_after(self, kind: str, served: Served, **how: str) -> None:
        """Ask, and leave once something has happened at the PACS."""
        before = self._pacs.last()
        with self._ask(served, **how) as client:
            self._pacs.wait(served.uid, before, kind)
            client.leave(reset=self._reset())

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < limit, f"waited in vain for {what}"
            time.sleep(0.01)
