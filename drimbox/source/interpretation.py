"""What a stored message wants: feed, withdraw, neither, or E005 (DB.SO.11, DB.SO.12, DB.SO.97).

Pure function of the bytes. The wish of the RIS comes first: a report that is not for the DMP, or whose
INS is not qualified, is nobody's business here, complete or not. Only then is it held against
table 3.1. What is known of an incomplete report is kept, because its reception and its failure are both
audited with the patient and the studies they are about.
"""

from __future__ import annotations

import attrs

from drimbox.cda.header import build_report, ipp_of, read_header, report_of, structure_of
from drimbox.config import Hl7Settings
from drimbox.errors import DrimboxError, ReportNotInterpretable
from drimbox.hl7.message import read_message
from drimbox.hl7.refusal import Hl7Refused
from drimbox.kos.changes import KeyObject, is_part10, read_key_object
from drimbox.kos.keyimages import NoteRefused
from drimbox.model import MessageAction, Organization, Report, ReportMessage, StudyChange
from drimbox.source.structures import same_structure
from drimbox.xdm.checking import is_packed, unpack
from drimbox.xdm.opening import FileRefused
from drimbox.xdm.rebuilding import message_of
from drimbox.xdm.rebuilding import report_of as archived_report
from drimbox.xml import XmlRefused

#: Results of messages that do not feed.
NOT_FOR_DMP, NOT_QUALIFIED = "destdmp-n", "ins-non-qualified"
_SETTINGS = Hl7Settings()


@attrs.frozen
class Interpretation:
    """What was understood. It counts when there is neither `reason` nor `error`."""

    #: None when the bytes are no report message at all.
    message: ReportMessage | None
    #: Whole when it feeds; as far as known, with empty values, when it withdraws a report, or there is a
    #: `reason` or an `error`.
    report: Report | None
    #: Why it does not feed although nothing is wrong.
    reason: str = ""
    #: E005 or E001.
    error: DrimboxError | None = None
    #: Studies that changed in a PACS, when the message is about that (DB.SO.133).
    changed: tuple[str, ...] = ()
    #: The key object that says so, when one does.
    key_object: KeyObject | None = None


def interpret(raw: bytes, settings: Hl7Settings = _SETTINGS) -> Interpretation:
    """Read a message and its report, as `[hl7]` wants it. Never raises for a bad one."""
    if is_part10(raw):
        return _key_object(raw)
    if is_packed(raw):
        return _taken_over(raw)
    try:
        message = read_message(raw)
    except Hl7Refused as refusal:
        return Interpretation(None, None, error=ReportNotInterpretable(str(refusal)))
    if isinstance(message, StudyChange):
        return Interpretation(None, None, changed=message.study_uids)
    reason = _reason(message)
    if reason:
        return Interpretation(message, _known(message), reason=reason)
    try:
        if message.to_dmp is None and settings.missing_destdmp != "yes":
            raise ReportNotInterpretable("segment DESTDMP absent")
        if message.action is MessageAction.DELETE:
            return Interpretation(message, _withdrawn(message))
        report = build_report(message)
        if settings.check_prt_structure:
            _check_prt_structure(message, report)
        return Interpretation(message, report)
    except DrimboxError as error:
        return Interpretation(message, _known(message), error=error)


def _key_object(raw: bytes) -> Interpretation:
    """Read a key object of a PACS (DB.SO.26); it was read once, when it came."""
    try:
        found = read_key_object(raw)
        return Interpretation(None, None, changed=found.study_uids, key_object=found)
    except NoteRefused as refusal:
        return Interpretation(None, None, error=ReportNotInterpretable(str(refusal)))


def _taken_over(raw: bytes) -> Interpretation:
    """Read back what an archive brought (DB.SO.30); it was checked when it was loaded."""
    try:
        taken = unpack(raw)
    except FileRefused as refusal:
        return Interpretation(None, None, error=ReportNotInterpretable(str(refusal)))
    line = next(iter(taken.reports), None)
    return Interpretation(message_of(taken, line), archived_report(taken, line))


def _withdrawn(message: ReportMessage) -> Report:
    """Return the report that a message withdraws: it needs no more than its identifier.

    What else table 3.1 asks for is not held against it: a report that should not be seen any more must
    not stay because of a missing value.
    """
    report = _known(message)
    if report is None:
        raise ReportNotInterpretable("le compte rendu à retirer n'est pas un document CDA lisible")
    document_id = report.document_id or message.announced_id
    if not document_id:
        raise ReportNotInterpretable("le compte rendu à retirer n'a pas d'identifiant")
    return attrs.evolve(report, document_id=document_id)


def _check_prt_structure(message: ReportMessage, report: Report) -> None:
    """Refuse a report whose signatory works elsewhere than the sender (requirements.md 2.5, an option).

    What only one of the two names leaves nothing to compare.
    """
    sender = message.prt_structure
    if sender is not None and not same_structure(sender.id, report.structure.id):
        raise ReportNotInterpretable(
            f"la structure de l'émetteur (PRT-8.10 : {_shown(sender.id)}) n'est pas celle du signataire"
            f" du compte rendu ({_shown(report.structure.id)})"
        )


def _shown(identifier: str) -> str:
    plain = len(identifier) <= 20 and identifier.isascii() and identifier.isalnum()
    return identifier if plain else "mal formée"


def _reason(message: ReportMessage) -> str:
    if message.to_dmp is False:
        return NOT_FOR_DMP
    return "" if message.ins_qualified else NOT_QUALIFIED


def _known(message: ReportMessage) -> Report | None:
    """Return what can be told of a report without judging it, None when it cannot be read."""
    try:
        header = read_header(message.document)
    except XmlRefused:
        return None
    structure = structure_of(header, message) or Organization("")
    return report_of(header, message, ipp_of(header, message), structure)
