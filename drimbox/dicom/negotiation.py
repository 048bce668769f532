"""Association PDUs as values: what is proposed, what is accepted (PS3.8 9.3.2, 9.3.3).

pynetdicom's classes read and write the bytes; here they become frozen objects of our own, and whatever
those classes raise on hostile bytes becomes `PduRefused`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from pydicom.config import disable_value_validation
from pynetdicom import pdu as peer_pdu
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SOPClassExtendedNegotiation,
)
from pynetdicom.presentation import PresentationContext

from drimbox.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from drimbox.dicom.pdu import PduRefused

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
#: Most contexts (their identifiers are the odd bytes), and most items of all kinds, in one request.
MAX_CONTEXTS, MAX_ITEMS = 128, 8192
_CONTEXT_ITEM, _USER_ITEM = 0x20, 0x50
#: Results of a presentation context (PS3.8 Table 9-18).
ACCEPTANCE, ABSTRACT_SYNTAX_UNSUPPORTED, TRANSFER_SYNTAXES_UNSUPPORTED = 0, 3, 4


@attrs.frozen
class ProposedContext:
    """A presentation context as its requestor proposes it (PS3.8 9.3.2.2)."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@attrs.frozen
class AssociationRequest:
    """What an A-ASSOCIATE-RQ says."""

    calling_ae_title: str
    called_ae_title: str
    contexts: tuple[ProposedContext, ...]
    #: Maximum length the peer takes in one P-DATA-TF; 0 is no limit.
    max_length: int = 0
    #: SOP Class Extended Negotiation: application information by SOP class UID.
    extended: Mapping[str, bytes] = attrs.field(factory=dict)

    def proposes(self, abstract_syntax: str) -> bool:
        """Say whether a context of that SOP class is proposed."""
        return any(context.abstract_syntax == abstract_syntax for context in self.contexts)

    def only(self, abstract_syntax: str) -> bool:
        """Say whether no context of another SOP class is proposed."""
        return all(context.abstract_syntax == abstract_syntax for context in self.contexts)


@attrs.frozen
class AssociationAccepted:
    """The peer took our request: transfer syntax by context id, for the contexts it accepted."""

    contexts: Mapping[int, str]
    max_length: int
    extended: Mapping[str, bytes]


def read_request(data: bytes) -> AssociationRequest:
    """Read an A-ASSOCIATE-RQ. Raises `PduRefused`."""
    _count_items(data)
    raw = _decode(peer_pdu.A_ASSOCIATE_RQ, data)
    try:
        request = AssociationRequest(
            calling_ae_title=str(raw.calling_ae_title).strip(),
            called_ae_title=str(raw.called_ae_title).strip(),
            contexts=tuple(
                ProposedContext(
                    int(context.context_id),
                    str(context.abstract_syntax or ""),
                    tuple(str(syntax) for syntax in context.transfer_syntax),
                )
                for context in raw.presentation_context_definition_list
            ),
            max_length=_max_length(raw),
            extended=_extended(raw),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise PduRefused(f"A-ASSOCIATE-RQ not readable: {error}") from error
    numbers = [context.id for context in request.contexts]
    if not numbers or len(set(numbers)) != len(numbers) or any(number % 2 == 0 for number in numbers):
        raise PduRefused("presentation context identifiers must be odd and distinct (PS3.8 9.3.2.2)")
    if not all(context.abstract_syntax and context.transfer_syntaxes for context in request.contexts):
        raise PduRefused("presentation context without abstract or transfer syntax (PS3.8 9.3.2.2)")
    return request


def read_accept(data: bytes, request: AssociationRequest) -> AssociationAccepted:
    """Read the A-ASSOCIATE-AC that answers `request`. Raises `PduRefused`."""
    raw = _decode(peer_pdu.A_ASSOCIATE_AC, data)
    try:
        contexts = {
            int(context.context_id): str(context.transfer_syntax[0])
            for context in raw.presentation_context_definition_results_list
            if context.result == ACCEPTANCE and context.transfer_syntax
        }
        accepted = AssociationAccepted(contexts, _max_length(raw), _extended(raw))
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise PduRefused(f"A-ASSOCIATE-AC not readable: {error}") from error
    proposed = {context.id: context.transfer_syntaxes for context in request.contexts}
    if any(syntax not in proposed.get(number, ()) for number, syntax in contexts.items()):
        raise PduRefused("A-ASSOCIATE-AC accepts what was not proposed")
    return accepted


def _count_items(data: bytes) -> None:
    """Refuse a request of more items than any real one before each of them is made an object."""
    items = contexts = 0
    # The fixed fields end at byte 74; then items, those of contexts and user information with items inside.
    position, end = 74, len(data)
    while position + 4 <= end:
        kind, length = data[position], int.from_bytes(data[position + 2 : position + 4], "big")
        items += 1
        contexts += kind == _CONTEXT_ITEM
        if items > MAX_ITEMS or contexts > MAX_CONTEXTS:
            raise PduRefused(f"{items} items, {contexts} of them contexts, in one A-ASSOCIATE-RQ")
        if kind == _CONTEXT_ITEM:
            position += 8
        elif kind == _USER_ITEM:
            position += 4
        else:
            position += 4 + length


def _max_length(raw: Any) -> int:
    length = int(raw.maximum_length_received or 0)
    if 0 < length < 12:
        raise PduRefused(f"maximum length {length} leaves no room for data")
    return length


def _decode(kind: Any, data: bytes) -> Any:
    """Read an association PDU with pynetdicom, whatever it raises on hostile bytes."""
    try:
        item = kind()
        # A warning per UID that is none would fill the log, and Python remembers every distinct warning.
        with disable_value_validation():
            item.decode(data)
            return item.to_primitive()
    except Exception as error:
        # Its decoders raise whatever their slicing meets: ValueError, IndexError, struct.error,
        # KeyError, TypeError, NotImplementedError. All mean one thing here.
        raise PduRefused(f"association PDU not readable: {type(error).__name__}") from error


def _extended(primitive: Any) -> dict[str, bytes]:
    return {
        str(item.sop_class_uid): bytes(item.service_class_application_information or b"")
        for item in primitive.user_information
        if isinstance(item, SOPClassExtendedNegotiation)
    }


def _user_information(max_pdu: int, extended: Iterable[tuple[str, bytes]]) -> list[Any]:
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    items: list[Any] = [length, implementation, version]
    for sop_class_uid, information in extended:
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid = sop_class_uid
        item.service_class_application_information = information
        items.append(item)
    return items


def _context(number: int, abstract_syntax: str, transfer_syntaxes: Sequence[str]) -> PresentationContext:
    context = PresentationContext()
    context.context_id = number
    context.abstract_syntax = abstract_syntax
    context.transfer_syntax = list(transfer_syntaxes)
    return context


def encode_request(request: AssociationRequest, max_pdu: int) -> bytes:
    """Write an A-ASSOCIATE-RQ that announces `max_pdu` bytes."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title = request.calling_ae_title
    primitive.called_ae_title = request.called_ae_title
    primitive.user_information = _user_information(max_pdu, request.extended.items())
    primitive.presentation_context_definition_list = [
        _context(context.id, context.abstract_syntax, context.transfer_syntaxes)
        for context in request.contexts
    ]
    item = peer_pdu.A_ASSOCIATE_RQ()
    item.from_primitive(primitive)
    return bytes(item.encode() or b"")


def encode_accept(
    request: AssociationRequest,
    accepted: Mapping[int, str],
    extended: Mapping[str, bytes],
    max_pdu: int,
) -> bytes:
    """Write the A-ASSOCIATE-AC: the contexts of `accepted` (id to syntax), the others refused."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title = request.calling_ae_title
    primitive.called_ae_title = request.called_ae_title
    primitive.user_information = _user_information(max_pdu, extended.items())
    results = []
    for context in request.contexts:
        syntax = accepted.get(context.id)
        # A refused context still names a syntax: its value is not significant (PS3.8 9.3.3.2).
        answer = _context(context.id, context.abstract_syntax, [syntax or context.transfer_syntaxes[0]])
        answer.result = ACCEPTANCE if syntax else TRANSFER_SYNTAXES_UNSUPPORTED
        results.append(answer)
    primitive.presentation_context_definition_results_list = results
    primitive.result = 0x00
    item = peer_pdu.A_ASSOCIATE_AC()
    item.from_primitive(primitive)
    return bytes(item.encode() or b"")
