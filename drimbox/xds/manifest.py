"""What the metadata takes from the KOS bytes: its identifier and the instant it was made.

Only the first attributes are read (group 0008 up to the time zone), so that a manifest of a thousand
references costs no more than a small one.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime, timezone
from typing import Any

import attrs
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial

from drimbox.xds.hl7types import parse_offset

_TIMEZONE_OFFSET = 0x00080201


@attrs.frozen
class ManifestFacts:
    """SOPInstanceUID, creation instant, and the offset the manifest declares (0008,0201)."""

    sop_instance_uid: str
    created: datetime | None
    zone: timezone | None


def read_facts(kos: bytes, assumed: timezone | None = None) -> ManifestFacts:
    """Read the facts from Part 10 bytes; `assumed` is the zone of one that declares none, else UTC.

    `created` is None when the manifest gives no usable (0008,0012) and (0008,0013). Raises `ValueError`
    when the bytes are not a DICOM file.
    """

    def past_the_zone(tag: Any, vr: str | None, length: int) -> bool:
        return int(tag) > _TIMEZONE_OFFSET

    try:
        dataset = read_partial(io.BytesIO(kos), stop_when=past_the_zone)
        uid = str(dataset.get("SOPInstanceUID", ""))
        date = str(dataset.get("InstanceCreationDate", "")).strip()
        time = str(dataset.get("InstanceCreationTime", "")).strip()
        zone = parse_offset(str(dataset.get("TimezoneOffsetFromUTC", "")))
    except (InvalidDicomError, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise ValueError("not a DICOM manifest") from error
    return ManifestFacts(uid, _instant(date, time, zone or assumed or UTC), zone)


def _instant(date: str, time: str, zone: timezone) -> datetime | None:
    whole = time.split(".")[0].ljust(6, "0")
    try:
        return datetime.strptime(date + whole, "%Y%m%d%H%M%S").replace(tzinfo=zone)
    except ValueError:
        return None
