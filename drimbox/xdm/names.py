"""Names of an XDM archive: short, upper case, of letters FAT16 knows; read without regard to case.

A month is `KAYYYYMM` (KA for "KOS Archive"), with the site's prefix before it where a gateway has several
(requirements.md 3.11); a submission set is `SS000001` and up, its manifest `KOS_1_1.DCM`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import attrs

INDEX, README, HOLDER = "INDEX.HTM", "README.TXT", "IHE_XDM"
METADATA, REPORTS = "METADATA.XML", "CR.TXT"
#: Sets one month can hold: `SS` and six digits.
MAX_SETS: Final = 999_999
#: Longest prefix of a site: what is shown of it must fit an 80-column listing.
_MAX_PREFIX = 16

_ARCHIVE = re.compile(r"(?:([A-Z0-9_-]{1,64})_)?KA([0-9]{4})(0[1-9]|1[0-2])", re.ASCII | re.IGNORECASE)
_SET = re.compile(r"SS[0-9]{1,9}", re.ASCII | re.IGNORECASE)
_KOS = re.compile(r"KOS_?[0-9]+_?[0-9]*\.DCM", re.ASCII | re.IGNORECASE)


@attrs.frozen(order=True)
class Month:
    """A month of publication."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Month | None:
        """Read `YYYYMM`; None for anything else."""
        found = re.fullmatch(r"([0-9]{4})(0[1-9]|1[0-2])", text, re.ASCII)
        return cls(int(found[1]), int(found[2])) if found and int(found[1]) else None

    @property
    def next(self) -> Month:
        """The month after."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    def __str__(self) -> str:
        return f"{self.year:04}{self.month:02}"


def prefixes(sites: Sequence[str]) -> dict[str, str]:
    """Return the prefix of each site, none for the only one; never the same twice (FAT has no case)."""
    if len(sites) == 1:
        return {sites[0]: ""}
    found: dict[str, str] = {}
    for site in sites:
        base = re.sub(r"[^A-Z0-9]+", "_", site.upper()).strip("_")[:_MAX_PREFIX] or "SITE"
        name, number = base, 1
        while name in found.values():
            number += 1
            name = f"{base[: _MAX_PREFIX - len(str(number))]}{number}"
        found[site] = name
    return found


def archive_name(prefix: str, month: Month) -> str:
    """Return `KAYYYYMM` or `PREFIX_KAYYYYMM`, without extension."""
    return f"{prefix}_KA{month}" if prefix else f"KA{month}"


def archive_month(name: str) -> Month | None:
    """Return the month an archive is named after, None when its name says none."""
    found = _ARCHIVE.fullmatch(re.sub(r"\.zip$", "", name, flags=re.IGNORECASE))
    return Month.parse(found[2] + found[3]) if found else None


def archive_prefix(name: str) -> str:
    """Return the prefix of an archive's name in upper case, empty when it has none."""
    found = _ARCHIVE.fullmatch(re.sub(r"\.zip$", "", name, flags=re.IGNORECASE))
    return (found[1] or "").upper() if found else ""


def set_name(number: int) -> str:
    """Return the folder of a submission set."""
    return f"SS{number:06}"


def kos_name(number: int, rank: int = 1) -> str:
    """Return the file of the manifest `rank` of the set `number`."""
    return f"KOS_{number}_{rank}.DCM"


def is_set(name: str) -> bool:
    """Say whether a folder is a submission set by its name."""
    return _SET.fullmatch(name) is not None


def is_kos(name: str) -> bool:
    """Say whether a file is a manifest by its name; makers write `KOS_1_1.DCM` and `KOS_11.DCM`."""
    return _KOS.fullmatch(name) is not None


def is_of_set(name: str) -> bool:
    """Say whether a file of a set is one that is read; others, `SIGN_1.XML` first, are left alone."""
    return name.upper() in (METADATA, REPORTS) or is_kos(name)
