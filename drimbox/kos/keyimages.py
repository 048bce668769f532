"""Key image notes: which images of a study a radiologist marked as of interest (DB.SO.194).

A note (KIN) is a key object of title 113000 "Of Interest", stored in the study itself in a series of
modality KO. To put it into the manifest: find the KO series in what C-FIND lists (`note_series`), fetch
them, give every object that came to `read_note`, and hand what `cited_by` makes of the notes to
`build_manifest(key_images=...)` (figure 11, interfaces.md 3.4).

Objects of that series are also manifests, rejection notes and other key objects: those are no notes and
give None. What a note says is somebody else's word: its size, its references, and the notes of a study
are bounded, references to other studies are dropped, and so are images that the study does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import attrs

from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.part10 import read_file_meta
from drimbox.dicom.tree import Item, read_tree
from drimbox.kos.reading import KOS_SOP_CLASS, KeyImage, text_decoder
from drimbox.model import Study, is_uid

OF_INTEREST: Final = "113000"
#: Modality of the series that hold key objects.
MODALITY: Final = "KO"
#: Largest note read, bytes; one cites a handful of images.
MAX_BYTES: Final = 1024 * 1024
#: Images one note may cite, and notes that may cite one image.
MAX_CITED: Final = 5_000
MAX_NOTES_OF_IMAGE: Final = 16
#: KO series and notes of one study.
MAX_SERIES: Final = 32
MAX_NOTES: Final = 256
#: Characters of a note's text that are kept.
MAX_TEXT: Final = 1024

_MAX_ELEMENTS = 50_000
_DESCRIPTION = "113012"
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_CODE_VALUE, _CODE_SCHEME = 0x00080100, 0x00080102
_REFERENCED_INSTANCE, _REFERENCED_CLASS = 0x00081155, 0x00081150
_SERIES_SEQUENCE, _SOP_SEQUENCE = 0x00081115, 0x00081199
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_VALUE_TYPE, _CONCEPT, _TEXT_VALUE = 0x0040A040, 0x0040A043, 0x0040A160
_CONTENT, _EVIDENCE = 0x0040A730, 0x0040A375
#: Controls but line feed: an escape would change the character set of the manifest's text.
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]+")


class NoteRefused(Exception):
    """This object cannot be read as a key object; the text, in French, holds no value of it."""


@attrs.frozen
class Note:
    """One key image note, and the instances of its own study that it cites."""

    sop_instance_uid: str
    series_uid: str
    study_uid: str
    #: What it says of them, lines separated by LF; empty when it says nothing.
    description: str
    cited: tuple[str, ...]


def note_series(study: Study) -> tuple[str, ...]:
    """Return the UIDs of the series to fetch for notes: modality KO, something in it, `MAX_SERIES` at most.

    The objects to expect are instances of SOP class 88.59; a series that has none by what the PACS says
    is left out, one whose classes the PACS does not tell is not.
    """
    return tuple(
        series.series_uid
        for series in study.series
        if series.modality.strip().upper() == MODALITY
        and any(each.sop_class_uid in ("", KOS_SOP_CLASS) for each in series.instances)
    )[:MAX_SERIES]


def read_note(data: bytes, transfer_syntax_uid: str | None = None) -> Note | None:
    """Read a key object; None when it is not a note of title 113000.

    `data` is a Part 10 file, or a data set alone when its transfer syntax is given. Raises `NoteRefused`
    for what is damaged, nested too deep, too large, or cites more than `MAX_CITED` instances.
    """
    if len(data) > MAX_BYTES:
        raise NoteRefused(f"objet clé de plus de {MAX_BYTES // 2**20} Mio")
    try:
        if transfer_syntax_uid is None:
            meta = read_file_meta(data)
            data, transfer_syntax_uid = data[meta.dataset_offset :], meta.transfer_syntax_uid
        root = read_tree(data, transfer_syntax_uid, _MAX_ELEMENTS)
    except DatasetRefused as refusal:
        raise NoteRefused(f"objet clé illisible ({refusal})") from refusal
    title = root.first(_CONCEPT)
    if root.text(_SOP_CLASS) != KOS_SOP_CLASS or title.text(_CODE_VALUE) != OF_INTEREST:
        return None
    if title.text(_CODE_SCHEME) not in ("", "DCM"):
        return None
    study = _uid(root, _STUDY)
    return Note(
        _uid(root, _SOP_INSTANCE), _uid(root, _SERIES), study, _description(root), _cited(root, study)
    )


def cited_by(notes: Iterable[Note], study: Study) -> dict[str, tuple[KeyImage, ...]]:
    """Return, by SOPInstanceUID of the key image, the notes that cite it, for `build_manifest`.

    Notes of another study, the same note twice, and images that `study` does not list are left out, and
    so is a note's citation of itself or of another key object. The order is that of the notes' UIDs, so
    that the same notes always give the same manifest.
    """
    known: dict[str, Note] = {}
    for note in notes:
        if note.study_uid == study.study_uid and len(known) < MAX_NOTES:
            known.setdefault(note.sop_instance_uid, note)
    images = {
        instance.sop_instance_uid
        for series in study.series
        for instance in series.instances
        if instance.sop_class_uid != KOS_SOP_CLASS and series.modality.strip().upper() != MODALITY
    }
    found: dict[str, list[KeyImage]] = {}
    for note in sorted(known.values(), key=lambda each: each.sop_instance_uid):
        for uid in note.cited:
            citing = found.setdefault(uid, []) if uid in images else []
            if len(citing) < MAX_NOTES_OF_IMAGE:
                citing.append(KeyImage(note.sop_instance_uid, note.series_uid, note.description))
    return {uid: tuple(citing) for uid, citing in found.items()}


def _cited(root: Item, study: str) -> tuple[str, ...]:
    """Return what the evidence of the note's own study names, each instance once, in its order."""
    found: dict[str, None] = {}
    for evidence in root.items(_EVIDENCE):
        if evidence.text(_STUDY) != study:
            continue
        for series in evidence.items(_SERIES_SEQUENCE):
            for reference in series.items(_SOP_SEQUENCE):
                if reference.text(_REFERENCED_CLASS) != KOS_SOP_CLASS:
                    found[_uid(reference, _REFERENCED_INSTANCE)] = None
                    if len(found) > MAX_CITED:
                        raise NoteRefused(f"note de plus de {MAX_CITED} images clés")
    return tuple(found)


def _description(root: Item) -> str:
    """Return the note's text: the description item, else the first text there is."""
    texts = [item for item in root.items(_CONTENT) if item.text(_VALUE_TYPE) == "TEXT"]
    named = [item for item in texts if item.first(_CONCEPT).text(_CODE_VALUE) == _DESCRIPTION]
    raw = next((value for item in named or texts if (value := item.value(_TEXT_VALUE))), b"")
    text = text_decoder(root)(raw).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub(" ", text).strip()[:MAX_TEXT].rstrip()


def _uid(item: Item, tag: int) -> str:
    value = item.text(tag)
    if not is_uid(value):
        raise NoteRefused("objet clé dont un identifiant manque ou n'est pas un UID")
    return value
