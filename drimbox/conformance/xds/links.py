"""The associations of a submission (ITI TF-3 4.2.2; ITI-57 for a change of status or of metadata)."""

from __future__ import annotations

import re
from typing import Final

from drimbox.conformance.report import Report, shown
from drimbox.conformance.rules import RuleBook
from drimbox.conformance.xds.rim import RimObject

_HAS_MEMBER: Final = "urn:oasis:names:tc:ebxml-regrep:AssociationType:HasMember"
_SIGNS: Final = "urn:ihe:iti:2007:AssociationType:signs"
_REPLACES: Final = "urn:ihe:iti:2007:AssociationType:RPLC"
_STATUS: Final = "urn:ihe:iti:2010:AssociationType:UpdateAvailabilityStatus"
_APPROVED: Final = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"
_STATUSES: Final = frozenset(
    {
        _APPROVED,
        "urn:oasis:names:tc:ebxml-regrep:StatusType:Deprecated",
        "urn:asip:ci-sis:2010:StatusType:Deleted",
        "urn:asip:ci-sis:2010:StatusType:Archived",
    }
)
_ENTRY = re.compile(r"urn:uuid:[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_LINKS: Final = "ITI TF-3 4.2.2"
_ITI57: Final = "ITI TF-2 3.57"

RULES = RuleBook("association")
_UNKNOWN = RULES.error("type", "association {kind} non prévue", _LINKS)
_MEMBER = RULES.error("member", "HasMember attendu une fois pour chaque entrée", "ITI TF-3 4.2.1")
_MEMBER_ENDS = RULES.error(
    "member_ends", "HasMember : du SubmissionSet vers une entrée attendu", "ITI TF-3 4.2.1"
)
_ORIGINAL = RULES.error("original", "HasMember sans SubmissionSetStatus = Original", "ITI TF-3 4.2.1")
_NOT_ORIGINAL = RULES.warning(
    "original_other", "{kind} : SubmissionSetStatus = Original attendu", "CI-SIS Partage de documents"
)
_SIGNED = RULES.error(
    "signs", "une association signs, de la signature vers le SubmissionSet, attendue", "IHE ITI DSG"
)
_SOURCE = RULES.error(
    "replace_source", "RPLC : la source n'est pas le KOS de la soumission", "ITI TF-3 4.2.2"
)
_TARGET = RULES.error(
    "target", "{kind} : targetObject urn:uuid:… d'une entrée du registre attendu", "ITI TF-3 4.2.2"
)
_OWN_TARGET = RULES.error("replace_own", "RPLC : la cible est dans la même soumission", "ITI TF-3 4.2.2")
_REPLACED_TWICE = RULES.error(
    "replace_twice", "RPLC : la même entrée remplacée deux fois", "ITI TF-3 4.2.2"
)
_ID_FORM = RULES.warning(
    "id", "id d'association urn:uuid: : le registre l'attribue", "CI-SIS Partage de documents"
)
_NO_CHANGE = RULES.error("status_none", "ITI-57 sans changement d'état ni nouvelle version", _ITI57)
_STATUS_SOURCE = RULES.error(
    "status_source", "changement d'état : la source n'est pas le SubmissionSet", _ITI57
)
_OLD_STATUS = RULES.error("status_old", "OriginalStatus : Approved attendu", _ITI57)
_NEW_STATUS = RULES.error(
    "status_new", "NewStatus absent ou non prévu", f"{_ITI57} ; CI-SIS Partage de documents"
)
_STATUS_ENTRY = RULES.error("status_entry", "changement d'état accompagné d'un ExtrinsicObject", _ITI57)
_PREVIOUS = RULES.error("previous", "HasMember sans PreviousVersion numérique", _ITI57)
_LOGICAL = RULES.error("lid", "nouvelle version sans lid", _ITI57)


def check_links(
    links: list[RimObject], package: str, entries: list[str], signatures: list[str], out: Report
) -> None:
    """Judge the associations of a publication; arguments are the ids of its objects."""
    members: list[str] = []
    signed, replaced = [], []
    for link in links:
        kind, source, target = _ends(link)
        if link.id.startswith("urn:uuid:"):
            _ID_FORM.broken(out)
        original = link.slot("SubmissionSetStatus") == "Original"
        if kind == _HAS_MEMBER:
            if source != package or target not in entries:
                _MEMBER_ENDS.broken(out)
            if not original:
                _ORIGINAL.broken(out)
            members.append(target)
            continue
        name = kind.rpartition(":")[2]
        if kind == _SIGNS:
            signed.append((source, target))
        elif kind == _REPLACES:
            if source not in entries or source in signatures:
                _SOURCE.broken(out)
            if target in entries:
                _OWN_TARGET.broken(out)
            elif _ENTRY.fullmatch(target) is None:
                _TARGET.broken(out, kind=name)
            replaced.append(target)
        else:
            _UNKNOWN.broken(out, kind=shown(kind))
            continue
        if not original:
            _NOT_ORIGINAL.broken(out, kind=name)
    if sorted(members) != sorted(entries):
        _MEMBER.broken(out)
    if signatures and signed != [(signatures[0], package)]:
        _SIGNED.broken(out)
    if len(set(replaced)) != len(replaced):
        _REPLACED_TWICE.broken(out)


def check_update(links: list[RimObject], package: str, entries: list[RimObject], out: Report) -> None:
    """Judge the associations of an ITI-57: changes of status (TD3.3c), or new versions of entries."""
    changes = [link for link in links if link.attributes.get("associationType") == _STATUS]
    members = [link for link in links if link.attributes.get("associationType") == _HAS_MEMBER]
    for link in links:
        if link not in changes and link not in members:
            _UNKNOWN.broken(out, kind=shown(link.attributes.get("associationType", "")))
    if not changes and not (members and entries):
        _NO_CHANGE.broken(out)
    if changes and entries:
        _STATUS_ENTRY.broken(out)
    for link in changes:
        _, source, target = _ends(link)
        if source != package:
            _STATUS_SOURCE.broken(out)
        if _ENTRY.fullmatch(target) is None:
            _TARGET.broken(out, kind="UpdateAvailabilityStatus")
        if link.slot("OriginalStatus") != _APPROVED:
            _OLD_STATUS.broken(out)
        if link.slot("NewStatus") not in _STATUSES - {_APPROVED}:
            _NEW_STATUS.broken(out)
    for link in members:
        if not link.slot("PreviousVersion").isdigit():
            _PREVIOUS.broken(out)
    for entry in entries:
        if not entry.attributes.get("lid"):
            _LOGICAL.broken(out)


def _ends(link: RimObject) -> tuple[str, str, str]:
    found = [link.attributes.get(name, "") for name in ("associationType", "sourceObject", "targetObject")]
    return found[0], found[1], found[2]
