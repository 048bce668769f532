"""The statistics of the specification (requirements.md 3.3, table 8): what each counts, and for whom.

Every one but STF20 and STF21 is a sum of raw events, one row each as it happened (`ports.Count`): the value
of a month is what its rows add up to, nothing else is kept. The viewer's (STF17 to STF19) begin with it.

How table 8 is read where it leaves a choice. A KOS sent is a new one (STF01), one that takes the place of
another is an update (STF02). A failure is *before* publication (STF04) until the first byte of a submission
has left, *on* publication (STF05) from then on. A request answered in part is an error (STF08): whoever
asked has to throw away what came; the images that left count all the same (STF09 to STF11). A question to
a PACS (STF12, STF13) is one about a study, however many C-FIND it takes.
"""

from __future__ import annotations

import re
from typing import Final

import attrs


@attrs.frozen
class Definition:
    """One statistic."""

    id: str
    #: French, for operators.
    title: str
    #: What `Count.part` holds: "" nothing, "syntaxe" a transfer syntax, "modalité" a modality.
    part: str = ""
    #: True when raw amounts are bytes, shown as MB (10^6).
    bytes: bool = False


DEFINITIONS: Final = {
    each.id: each
    for each in (
        Definition("STF01", "KOS envoyés au DMP"),
        Definition("STF02", "KOS mis à jour dans le DMP"),
        Definition("STF03", "KOS retirés du DMP"),
        Definition("STF04", "Créations et mises à jour de KOS en erreur avant publication"),
        Definition("STF05", "Créations et mises à jour de KOS en erreur à la publication"),
        Definition("STF06", "Retraits de KOS en erreur"),
        Definition("STF07", "Demandes de série servies"),
        Definition("STF08", "Demandes de série en erreur"),
        Definition("STF09", "Images envoyées, par syntaxe de transfert", part="syntaxe"),
        Definition("STF10", "Images envoyées, par modalité", part="modalité"),
        Definition("STF11", "Volume des images envoyées (Mo)", bytes=True),
        Definition("STF12", "Questions au PACS réussies"),
        Definition("STF13", "Questions au PACS en erreur"),
        Definition("STF14", "C-MOVE réussis"),
        Definition("STF15", "C-MOVE en erreur"),
        Definition("STF16", "Images reçues du PACS"),
        Definition("STF17", "Appels de la visionneuse servis"),
        Definition("STF18", "Appels de la visionneuse en erreur"),
        Definition("STF19", "Volume envoyé à la visionneuse (Mo)", bytes=True),
        Definition("STF22", "Comptes rendus interprétables"),
        Definition("STF23", "Comptes rendus non interprétables"),
    )
}

#: First figure of a Struct_IdNat, and what the rest then is (requirements.md 3.5).
_KINDS = (
    (re.compile(r"1([0-9A-Z]{9})", re.ASCII), "FINESS"),
    (re.compile(r"([0-9][0-9AB][0-9]{7})", re.ASCII), "FINESS"),
    (re.compile(r"3([0-9]{14})", re.ASCII), "SIRET"),
    (re.compile(r"2([0-9]{9})", re.ASCII), "SIREN"),
    (re.compile(r"4([0-9]{14})", re.ASCII), "RPPS-rang"),
)


def structure_of(identifier: str) -> tuple[str, str]:
    """Return what a structure is counted by: "FINESS", "SIRET", "RPPS-rang" ... and its number.

    ("", "") when nobody knows the structure; ("autre", identifier) for a number of another kind.
    """
    for pattern, kind in _KINDS:
        found = pattern.fullmatch(identifier)
        if found:
            return kind, found[1]
    return ("autre", identifier) if identifier else ("", "")
