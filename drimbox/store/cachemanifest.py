"""The manifest of a cached series: what it is, which instances it has, where their bytes are.

Two lines, each `<SHA-256 of the rest> <JSON>`: what the entry is (all that a start reads), then its
instances. Whatever is not exactly what was written is `CacheDamaged`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from drimbox.model import is_uid
from drimbox.ports import CacheDamaged, CachedInstance

#: Longest run of bytes of one instance that is checked at once.
BLOCK: Final = 1024 * 1024
#: Longest first line.
MAX_HEAD: Final = 4096
_FORMAT: Final = 1


@attrs.frozen
class SeriesKey:
    """What an entry is for."""

    site: str
    study_uid: str
    series_uid: str

    @property
    def digest(self) -> str:
        """The part of the folder's name that this key decides."""
        return hashlib.sha256(
            "\0".join((self.site, self.study_uid, self.series_uid)).encode("utf-8")
        ).hexdigest()


@attrs.frozen
class Run:
    """Bytes of one instance that stand together in `data`."""

    offset: int
    size: int
    digest: str


@attrs.frozen
class Record:
    """One instance of an entry, and where its bytes are."""

    instance: CachedInstance
    runs: tuple[Run, ...]


@attrs.frozen
class Head:
    """What an entry is: for whom, since when (Unix time), and how long its `data` must be."""

    key: SeriesKey
    created: float
    data_size: int


def _line(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    return hashlib.sha256(text).hexdigest().encode("ascii") + b" " + text + b"\n"


def _value(line: bytes) -> Any:
    digest, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or hashlib.sha256(text[:-1]).hexdigest().encode("ascii") != digest:
        raise CacheDamaged("a manifest that was not written so")
    return json.loads(text)


def write_head(head: Head) -> bytes:
    key = head.key
    return _line([_FORMAT, key.site, key.study_uid, key.series_uid, head.created, head.data_size])


def read_head(raw: bytes) -> Head:
    line = raw.partition(b"\n")[0] + b"\n"
    try:
        version, site, study, series, created, size = _value(line)
    except (TypeError, ValueError) as error:
        raise CacheDamaged("a manifest of another shape") from error
    if version != _FORMAT:
        raise CacheDamaged("a manifest of another version")
    return Head(SeriesKey(str(site), str(study), str(series)), float(created), int(size))


def write_records(records: Iterable[Record]) -> bytes:
    return _line(
        [
            [
                record.instance.sop_instance_uid,
                record.instance.sop_class_uid,
                record.instance.transfer_syntax_uid,
                [[run.offset, run.size, run.digest] for run in record.runs],
            ]
            for record in records
        ]
    )


def read_records(line: bytes) -> tuple[Record, ...]:
    try:
        return tuple(_records(_value(line)))
    except (TypeError, ValueError) as error:
        raise CacheDamaged("a manifest of another shape") from error


def _records(rows: list[Any]) -> Iterator[Record]:
    for uid, sop_class, syntax, spans in rows:
        if not all(is_uid(each) for each in (uid, sop_class, syntax)):
            raise CacheDamaged("an instance without its UIDs")
        runs = tuple(Run(int(offset), int(size), str(digest)) for offset, size, digest in spans)
        if any(not 0 < run.size <= BLOCK or run.offset < 0 for run in runs):
            raise CacheDamaged("a run that cannot be")
        instance = CachedInstance(uid, sop_class, syntax, sum(run.size for run in runs))
        yield Record(instance, runs)
