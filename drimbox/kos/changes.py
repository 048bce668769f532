"""Key objects by which a PACS tells that a study changed: IOCM rejection notes (RAD-66, DB.SO.25).

Only title and studies count. Which instances went, the note may say; what the PACS holds now decides
(figure 9). A note of interest (113000) is no rejection, but the manifest shows key images: it is a change
as well. A manifest that comes back is none (interfaces.md 10).
"""

from __future__ import annotations

from typing import Final

import attrs

from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.part10 import read_file_meta
from drimbox.dicom.tree import Item, read_tree
from drimbox.kos.keyimages import OF_INTEREST, NoteRefused
from drimbox.kos.reading import KOS_SOP_CLASS
from drimbox.model import is_uid

#: Titles of rejection notes (PS3.16 CID 7011).
REJECTIONS: Final = frozenset({"113001", "113037", "113038", "113039"})
#: Longest key object taken, bytes: one that rejects every image of a large study.
MAX_BYTES: Final = 8 * 1024 * 1024
#: Studies one object may be about.
MAX_STUDIES: Final = 100
_MAX_ELEMENTS = 500_000
_SOP_CLASS, _SOP_INSTANCE, _STUDY = 0x00080016, 0x00080018, 0x0020000D
_CONCEPT, _CODE_VALUE, _CODE_SCHEME = 0x0040A043, 0x00080100, 0x00080102
_EVIDENCE = 0x0040A375


@attrs.frozen
class KeyObject:
    """A key object, as far as it tells of a change."""

    sop_instance_uid: str
    #: Code of its title, `113039`; empty when it is of no DCM code.
    title: str
    study_uids: tuple[str, ...]

    @property
    def tells_of_change(self) -> bool:
        """Say whether the studies it names are to be compared with their PACS."""
        return self.title in REJECTIONS or self.title == OF_INTEREST


def is_part10(data: bytes) -> bool:
    """Say whether these bytes are a DICOM file."""
    return data[128:132] == b"DICM"


def read_key_object(data: bytes) -> KeyObject:
    """Read a Part 10 file that must be a key object.

    Raises `NoteRefused` for what is no key object, damaged, too large, or names no study.
    """
    if len(data) > MAX_BYTES:
        raise NoteRefused(f"objet clé de plus de {MAX_BYTES // 2**20} Mio")
    try:
        meta = read_file_meta(data)
        root = read_tree(data[meta.dataset_offset :], meta.transfer_syntax_uid, _MAX_ELEMENTS)
    except DatasetRefused as refusal:
        raise NoteRefused(f"objet clé illisible ({refusal})") from refusal
    if root.text(_SOP_CLASS) != KOS_SOP_CLASS:
        raise NoteRefused("cet objet DICOM n'est pas un objet clé")
    concept = root.first(_CONCEPT)
    title = concept.text(_CODE_VALUE) if concept.text(_CODE_SCHEME) in ("", "DCM") else ""
    named = [root, *root.items(_EVIDENCE)]
    studies = dict.fromkeys(study for item in named if (study := _study(item)))
    if not studies:
        raise NoteRefused("objet clé sans StudyInstanceUID")
    if len(studies) > MAX_STUDIES:
        raise NoteRefused(f"objet clé sur plus de {MAX_STUDIES} examens")
    return KeyObject(root.text(_SOP_INSTANCE), title, tuple(studies))


def _study(item: Item) -> str:
    value = item.text(_STUDY)
    if value and not is_uid(value):
        raise NoteRefused("objet clé dont un StudyInstanceUID n'est pas un UID")
    return value
