"""What the key objects of a study are, by their titles: rejection notes are no images (interfaces.md 3.2).

A PACS that keeps its IOCM rejection notes lists them with the study they reject from, each an instance of
a KO series of its own. C-FIND does not say what a key object is about: its title does, which never changes.
"""

from __future__ import annotations

from drimbox.kos.changes import read_key_object
from drimbox.kos.keyimages import MODALITY, NoteRefused
from drimbox.kos.reading import KOS_SOP_CLASS
from drimbox.model import Instance, Series, Study


def key_objects(study: Study) -> dict[str, frozenset[str]]:
    """Return, by series, the instances that are key objects or may be: a PACS need not tell the class."""
    found = {
        series.series_uid: frozenset(
            one.sop_instance_uid for one in series.instances if _is_key_object(series, one)
        )
        for series in study.series
    }
    return {series_uid: uids for series_uid, uids in found.items() if uids}


def _is_key_object(series: Series, one: Instance) -> bool:
    if one.sop_class_uid:
        return one.sop_class_uid == KOS_SOP_CLASS
    return series.modality.strip().upper() == MODALITY


def title_of(data: bytes) -> str:
    """Return the DCM code of a key object's title; empty when it has none, or cannot be read."""
    try:
        return read_key_object(data).title
    except NoteRefused:
        return ""
