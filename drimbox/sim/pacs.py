"""A PACS on pynetdicom that answers correctly, or misbehaves on demand.

Theory of operation. `SimulatedPacs` is threads beside the program that starts it: one listens, one per
association serves C-ECHO, C-FIND (Study Root, STUDY, SERIES and IMAGE levels, relational when
negotiated), C-MOVE to the destinations it knows, and C-STORE. It shares no code with the gateway's
own upper layer, so that neither can excuse the other. What goes wrong is said by `Behaviour`
(`pacs_behaviour.py`), replaced at any time; what happened is read from `seen`.

As a process (`python -m drimbox.sim.pacs --ae-title PACS --load FOLDER --destination AET=host:port`)
it prints one JSON line when it is ready, `{"ready": true, "port": N, "ae_title": "PACS"}`, then obeys
JSON lines on its standard input and answers each by one line: `{"behaviour": {...}}`,
`{"destinations": {"AET": ["host", port]}}`, `{"load": "folder or file"}`, `{"seen": true}`. It ends when
its standard input does, so it never outlives the program that holds the other end.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
import click
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_MOVE
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from drimbox.sim.pacs_association import cut, misbehave, wait
from drimbox.sim.pacs_behaviour import GARBAGE, Behaviour, behaviour_from_json
from drimbox.sim.pacs_index import Entry, Index, missing_keys
from drimbox.sim.pacs_move import Move
from drimbox.sim.studies import GeneratedStudy, derived_uid

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
_VERIFICATION = "1.2.840.10008.1.1"
_PLAIN: list[Any] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_MAXIMUM_PDU = 131072


@attrs.frozen
class Seen:
    """One thing that happened: echo, find, move, cancel, stored, final, received ..."""

    kind: str
    #: Seconds of the monotonic clock.
    at: float
    details: Mapping[str, Any]


class SimulatedPacs:
    """A PACS in threads of this process; use it as a context manager, or `start` and `stop` it."""

    def __init__(
        self,
        ae_title: str = "PACS",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        destinations: Mapping[str, tuple[str, int]] | None = None,
        behaviour: Behaviour | None = None,
        storage: Path | None = None,
    ) -> None:
        self.ae_title = ae_title
        self.host = host
        #: Known once started when it was 0.
        self.port = port
        #: Move destinations; may be changed at any time.
        self.destinations: dict[str, tuple[str, int]] = dict(destinations or {})
        #: Where what it receives by C-STORE is kept; acknowledged and forgotten when None.
        self.storage = storage
        self.index = Index()
        self.stopping = threading.Event()
        self._behaviour = behaviour or Behaviour()
        #: Says how each C-MOVE behaves, by its number since the start; None: like everything else.
        self.each_move: Callable[[int], Behaviour] | None = None
        self._moves: list[int] = []
        self._seen: list[Seen] = []
        self._lock = threading.Lock()
        self._relational: weakref.WeakSet[Any] = weakref.WeakSet()
        self._ae = AE(ae_title=ae_title)
        self._ae.network_timeout = None
        self._ae.maximum_pdu_size = _MAXIMUM_PDU
        self._server: Any = None
        self._started = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, unless the behaviour is to be down; a restart keeps the port."""
        self._started = True
        self.stopping.clear()
        if not self._behaviour.down:
            self._listen()

    def stop(self) -> None:
        """Stop listening and cut every association."""
        self._started = False
        self._hang_up()

    @property
    def behaviour(self) -> Behaviour:
        """How it behaves; assign another one to change it from now on."""
        return self._behaviour

    @behaviour.setter
    def behaviour(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        if not self._started:
            return
        if behaviour.down:
            self._hang_up()
        elif self._server is None:
            self.stopping.clear()
            self._listen()

    def load(self, source: GeneratedStudy | Path | Iterable[Path]) -> None:
        """Hold a study, a file, the `.dcm` files of a folder, or these files; they stay where they are."""
        if isinstance(source, GeneratedStudy):
            source = source.files
        elif isinstance(source, Path):
            source = sorted(source.rglob("*.dcm")) if source.is_dir() else [source]
        for path in source:
            self.index.add(path)

    def retrieve(self, identifier: Dataset) -> list[Entry]:
        """Return what a C-MOVE identifier names."""
        return self.index.retrieve(identifier)

    def note(self, kind: str, **details: object) -> None:
        """Add to `seen`."""
        with self._lock:
            self._seen.append(Seen(kind, time.monotonic(), details))

    def seen(self, *kinds: str) -> list[Seen]:
        """Return what happened since the start, all or of these kinds."""
        with self._lock:
            return [event for event in self._seen if not kinds or event.kind in kinds]

    def supported_contexts(self) -> list[PresentationContext]:
        """Return what it accepts: verification, query, move, and storage of every class."""
        accepts = list(self._behaviour.accepts) or list(ALL_TRANSFER_SYNTAXES)
        storage = [build_context(str(cx.abstract_syntax), accepts) for cx in AllStoragePresentationContexts]
        return [build_context(uid, _PLAIN) for uid in (_VERIFICATION, FIND, MOVE)] + storage

    # -- serving

    def serve_move(self, association: Any, request: C_MOVE, context_id: int) -> None:
        """Serve one C-MOVE in the thread of its association."""
        association.dimse.cancel_req.clear()
        with self._lock:
            number, before = len(self._moves), self._moves[-1:]
            self._moves.append(request.MessageID or 0)
        behaviour = self.each_move(number) if self.each_move is not None else self._behaviour
        Move(self, association, request, context_id, behaviour, before[0] if before else 1).run()

    def _listen(self) -> None:
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_SOP_EXTENDED, self._on_extended),
            (evt.EVT_ACCEPTED, self._on_accepted),
        ]
        self._server = self._ae.make_server(
            (self.host, self.port),
            contexts=self.supported_contexts(),
            evt_handlers=handlers,
            server_class=ThreadedAssociationServer,
            request_handler=functools.partial(_Handler, self),
        )
        self.port = self._server.server_address[1]
        self._ae._servers.append(self._server)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _hang_up(self) -> None:
        self.stopping.set()
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
        for association in self._ae.active_associations:
            cut(association)
            association.kill()

    def _on_accepted(self, event: Any) -> None:
        self.note("association", calling=event.assoc.requestor.ae_title.strip())

    def _on_extended(self, event: Any) -> dict[str, bytes]:
        asked = event.app_info.get(FIND, b"")[:1] == b"\x01"
        granted = asked and self._behaviour.relational
        if granted:
            self._relational.add(event.assoc)
        return {FIND: b"\x01" if granted else b"\x00"} if FIND in event.app_info else {}

    def _on_echo(self, event: Any) -> int:
        self.note("echo", calling=event.assoc.requestor.ae_title.strip())
        return self._behaviour.echo_status

    def _on_find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        behaviour, identifier = self._behaviour, event.identifier
        relational = event.assoc in self._relational
        self.note("find", identifier=identifier, relational=relational)
        if not misbehave(event.assoc, behaviour.find, self.stopping):
            return
        if behaviour.find_delay and not wait(event.assoc, behaviour.find_delay, self.stopping):
            return
        if behaviour.find_status is not None:
            yield behaviour.find_status, None
            return
        if missing_keys(identifier, relational=relational):
            yield 0xA900, None
            return
        answers = self.index.find(identifier, omit=behaviour.find_omit)
        if behaviour.find_foreign and answers:
            foreign = deepcopy(answers[-1])
            foreign.StudyInstanceUID = derived_uid(foreign.StudyInstanceUID, "intruder")
            answers.append(foreign)
        if behaviour.find_repeat:
            answers = [answer for answer in answers for _ in range(2)]
        for number, answer in enumerate(answers):
            if event.is_cancelled:
                self.note("cancel")
                yield 0xFE00, None
                return
            if number == behaviour.find_stop_after:
                misbehave(event.assoc, "abort", self.stopping)
                return
            yield 0xFF00, answer

    def _on_store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.note(
            "received",
            uid=uid,
            calling=event.assoc.requestor.ae_title.strip(),
            transfer_syntax=str(event.context.transfer_syntax),
        )
        status = self._behaviour.store_status
        if status == 0x0000 and self.storage is not None:
            self.storage.mkdir(parents=True, exist_ok=True)
            with self._lock:
                path = self.storage / f"{len(list(self.storage.iterdir())) + 1:06}.dcm"
                path.write_bytes(event.encoded_dataset())
            self.index.add(path)
        return status


class _Handler(RequestHandler):
    """Takes one connection: misbehaves at once, or makes an association that serves our C-MOVE."""

    def __init__(self, pacs: SimulatedPacs, request: Any, address: Any, server: Any) -> None:
        self._pacs = pacs
        super().__init__(request, address, server)

    def handle(self) -> None:
        """Serve the connection; called in a thread of its own."""
        how = self._pacs.behaviour.connection
        if how == "answer":
            super().handle()
            return
        self._pacs.note("connection", answer=how)
        if how == "garbage":
            self.request.sendall(GARBAGE)
        if how != "close":
            # Until the caller leaves: a peer that hangs keeps its socket open.
            self.request.settimeout(0.05)
            while not self._pacs.stopping.is_set():
                try:
                    if not self.request.recv(65536):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
        self.server.shutdown_request(self.request)

    def _create_association(self) -> Association:
        association: Any = super()._create_association()
        pacs, behaviour = self._pacs, self._pacs.behaviour
        self.ae.maximum_associations = behaviour.maximum_associations
        if behaviour.accepts:
            association.acceptor.supported_contexts = pacs.supported_contexts()
        if behaviour.reject is not None:
            association.acse.negotiate_association = functools.partial(
                _reject, association, behaviour.reject
            )
        usual = association._serve_request

        def serve(message: Any, context_id: int) -> None:
            if isinstance(message, C_MOVE) and message.is_valid_request:
                pacs.serve_move(association, message, context_id)
            else:
                usual(message, context_id)

        association._serve_request = serve
        made: Association = association
        return made


def _reject(association: Any, reasons: tuple[int, int, int]) -> None:
    association.acse.send_reject(*reasons)
    association.kill()


@click.command()
@click.option("--ae-title", default="PACS", show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default=True, help="0 : un port libre.")
@click.option("--destination", "destinations", multiple=True, metavar="AET=HÔTE:PORT")
@click.option("--load", "folders", multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--storage", type=click.Path(path_type=Path), help="Dossier des images reçues.")
@click.option("--behaviour", default="{}", help="Comportement, en JSON.")
def main(
    ae_title: str,
    host: str,
    port: int,
    destinations: tuple[str, ...],
    folders: tuple[Path, ...],
    storage: Path | None,
    behaviour: str,
) -> None:
    """Simuler un PACS, piloté par des lignes JSON sur l'entrée standard."""
    pacs = SimulatedPacs(
        ae_title,
        host=host,
        port=port,
        storage=storage,
        behaviour=behaviour_from_json(json.loads(behaviour)),
    )
    for destination in destinations:
        title, _, address = destination.partition("=")
        there, _, number = address.rpartition(":")
        pacs.destinations[title] = (there, int(number))
    for folder in folders:
        pacs.load(folder)
    with pacs:
        _say(ready=True, port=pacs.port, ae_title=ae_title)
        for line in sys.stdin:
            try:
                _say(**_obey(pacs, json.loads(line)))
            except (ValueError, TypeError, AttributeError, OSError) as error:
                _say(ok=False, error=str(error))


def _obey(pacs: SimulatedPacs, order: dict[str, Any]) -> dict[str, Any]:
    if "behaviour" in order:
        pacs.behaviour = behaviour_from_json(order["behaviour"])
    if "destinations" in order:
        pacs.destinations.clear()
        pacs.destinations.update({t: (str(h), int(p)) for t, (h, p) in order["destinations"].items()})
    if "load" in order:
        pacs.load(Path(order["load"]))
    if "seen" in order:
        return {"ok": True, "seen": [event.kind for event in pacs.seen()]}
    return {"ok": True}


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
