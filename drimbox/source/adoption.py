"""Is a manifest that an archive brought what we would publish ourselves? (DB.SO.30)

Another maker's manifest has no digest of ours to compare with. The first time its study is looked at, it is
held against what it points to: the same instances, fetched at the same addresses, with the same key images.
Nothing differs: its digest is ours from now on, and a resynchronisation does not publish a whole archive
again. Only as long as the report that speaks is the one the archive brought, which was rebuilt from this
very manifest; a report that came since may say anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drimbox.kos.compare import difference
from drimbox.kos.reading import KeyImage, ManifestRefused, read_manifest
from drimbox.model import Study
from drimbox.ports import IMPORTED, ArchivedKos


def is_adoptable(latest: ArchivedKos, ris: str) -> bool:
    """Say whether the manifest was brought by an archive, and so was the report that speaks."""
    return latest.fingerprint == IMPORTED and ris == IMPORTED


def same_content(
    kos: bytes, study: Study, retrieve_base: str, key_images: Mapping[str, Sequence[KeyImage]]
) -> bool:
    """Say whether a manifest points to what `study` holds, at our addresses; False when unreadable."""
    try:
        manifest = read_manifest(kos)
    except ManifestRefused:
        return False
    if difference(manifest, study):
        return False
    address = f"{retrieve_base}/studies/{manifest.study_uid}/series/"
    if any(each.retrieve_url != address + each.series_uid for each in manifest.series):
        return False
    marked = {
        one.sop_instance_uid: {note.sop_instance_uid for note in one.key_images}
        for each in manifest.series
        for one in each.instances
        if one.key_images
    }
    return marked == {
        uid: {note.sop_instance_uid for note in notes} for uid, notes in key_images.items() if notes
    }
