"""One store association of the simulated PACS towards a move destination.

The bytes of a file are sent as they are; they are decoded and encoded again only when the receiver
accepted none but another transfer syntax (JPEG-LS to uncompressed, explicit to implicit VR).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from io import BytesIO
from typing import Any

import attrs
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode, split_dataset
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import PresentationContext

from drimbox.sim.pacs_association import abort, cut
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.pacs_index import Entry
from drimbox.sim.studies import derived_uid

_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_MAXIMUM_PDU = 131072


@attrs.frozen
class Payload:
    """One instance as it is stored: identity, transfer syntax, bytes of its data set."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data: bytes

    @classmethod
    def of(cls, entry: Entry) -> Payload:
        """Read a file's data set without decoding it."""
        _, offset = split_dataset(entry.path)
        data = entry.path.read_bytes()[offset:]
        return cls(entry.uid("SOPClassUID"), entry.uid("SOPInstanceUID"), entry.transfer_syntax, data)

    @classmethod
    def intruder(cls, entry: Entry, kind: str) -> Payload:
        """Make an instance that has no business in the move: another study's, series' or patient's."""
        data = dcmread(entry.path)
        if kind in ("study", "disguise"):
            data.StudyInstanceUID = derived_uid(data.StudyInstanceUID, "intruder")
        if kind in ("study", "series", "disguise"):
            data.SeriesInstanceUID = derived_uid(data.SeriesInstanceUID, "intruder")
        if kind == "patient":
            data.PatientID, data.PatientName = "IPP9999", "AUTRE^PATIENT"
        if kind != "disguise":
            data.SOPInstanceUID = derived_uid(data.SOPInstanceUID, "intruder", kind)
        encoded = encode(data, entry.transfer_syntax == ImplicitVRLittleEndian, True)
        assert encoded is not None
        return cls(str(data.SOPClassUID), str(data.SOPInstanceUID), entry.transfer_syntax, encoded)

    def encoded_in(self, transfer_syntax: str) -> bytes:
        """Return the data set in an uncompressed transfer syntax, or as stored when that is it."""
        if transfer_syntax == self.transfer_syntax:
            return self.data
        data = _parse(self.data, self.transfer_syntax)
        if UID(self.transfer_syntax).is_compressed:
            data.decompress(generate_instance_uid=False)
        encoded = encode(data, transfer_syntax == ImplicitVRLittleEndian, True)
        assert encoded is not None
        return encoded


class StoreAssociation:
    """Opens an association to the destination, sends instances one after the other, ends it."""

    def __init__(
        self, ae_title: str, behaviour: Behaviour, originator: tuple[str | None, int | None]
    ) -> None:
        self._behaviour = behaviour
        self._originator = originator
        self._ae = AE(ae_title=behaviour.store_calling or ae_title)
        self._ae.dimse_timeout = behaviour.patience
        self._ae.acse_timeout = min(behaviour.patience, 10.0)
        self._ae.connection_timeout = 5.0
        self._ae.network_timeout = None
        self._association: Any = None
        self._message_id = 0

    def open(self, address: tuple[str, int], called: str, payloads: Iterable[tuple[str, str]]) -> bool:
        """Associate, proposing what these (SOP class, transfer syntax) pairs need; False when refused."""
        contexts = _contexts(dict.fromkeys(payloads), self._behaviour.propose)
        self._association = self._ae.associate(
            address[0], address[1], contexts, ae_title=called, max_pdu=_MAXIMUM_PDU
        )
        if not self._association.is_established:
            cut(self._association)
            return False
        # pynetdicom's own loop would take the responses off the queue as stray messages.
        self._association._reactor_checkpoint.clear()
        while not self._association._is_paused and self._association.is_alive():
            time.sleep(0.0005)
        return True

    def send(self, payload: Payload) -> int | None:
        """Send one instance and return the status of the response, None when none came in time.

        An instance for which no presentation context was accepted is not sent: 0x0122.
        """
        request, context = self._request(payload)
        if request is None or context is None:
            return 0x0122
        if self._behaviour.drip:
            stream = self._stream(request, context)
            self._association.dul.socket.send(stream[: len(stream) // 2])
            time.sleep(self._behaviour.drip)
            self._association.dul.socket.send(stream[len(stream) // 2 :])
        else:
            self._association.dimse.send_msg(request, context)
        _, response = self._association.dimse.get_msg(block=True)
        if response is None:
            cut(self._association)
            return None
        status: int = response.Status
        return status

    def send_half(self, payload: Payload) -> None:
        """Send the command and half of the data set, then drop the connection."""
        request, context = self._request(payload)
        if request is not None and context is not None:
            stream = self._stream(request, context)
            self._association.dul.socket.send(stream[: len(stream) // 2])
            time.sleep(0.05)
        self.cut()

    def release(self) -> None:
        """End the association politely; does nothing when it is over."""
        with contextlib.suppress(Exception):
            self._association.release()

    def abort(self) -> None:
        """End it by A-ABORT."""
        abort(self._association)

    def cut(self) -> None:
        """End it by closing the connection without a word."""
        cut(self._association)

    def _stream(self, request: C_STORE, context: int) -> bytes:
        """Encode a whole request, for what pynetdicom cannot do with it."""
        message = C_STORE_RQ()
        message.primitive_to_message(request)
        stream = bytearray()
        for fragment in message.encode_msg(context, self._association.dimse.maximum_pdu_size):
            pdu = P_DATA_TF()
            pdu.from_primitive(fragment)
            stream += pdu.encode()
        return bytes(stream)

    def _request(self, payload: Payload) -> tuple[C_STORE | None, int | None]:
        accepted = [
            (context.transfer_syntax[0], context.context_id)
            for context in self._association.accepted_contexts
            if context.abstract_syntax == payload.sop_class
        ]
        if not accepted:
            return None, None
        same = [pair for pair in accepted if pair[0] == payload.transfer_syntax]
        syntax, context = (same or accepted)[0]
        if syntax != payload.transfer_syntax and syntax not in _UNCOMPRESSED:
            return None, None
        self._message_id = self._message_id % 65535 + 1
        request = C_STORE()
        request.MessageID = self._message_id
        request.Priority = 2
        request.AffectedSOPClassUID = payload.sop_class
        request.AffectedSOPInstanceUID = payload.sop_instance
        request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID = self._originator
        request.DataSet = BytesIO(payload.encoded_in(str(syntax)))
        return request, context


def _contexts(pairs: Iterable[tuple[str, str]], propose: str) -> list[PresentationContext]:
    contexts: list[PresentationContext] = []
    for sop_class, stored in pairs:
        # One context of several syntaxes, or several of one: both are met in hospitals.
        plain = [str(syntax) for syntax in _UNCOMPRESSED]
        both = list(dict.fromkeys([stored, *plain]))
        if propose == "each":
            contexts += [build_context(sop_class, syntax) for syntax in both]
        else:
            offered = {"stored": [stored], "uncompressed": plain, "both": both}[propose]
            contexts.append(build_context(sop_class, offered))
    return contexts[:128]


def _parse(data: bytes, transfer_syntax: str) -> Dataset:
    """Read a data set without its file meta, and give it the one decoding needs."""
    implicit = transfer_syntax == ImplicitVRLittleEndian
    parsed = read_dataset(BytesIO(data), implicit, True)
    dataset = Dataset(parsed)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    return dataset
