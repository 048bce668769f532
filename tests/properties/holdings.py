"""What the PACS of the random histories holds, and what the KOS of each study says of it.

Every copy that is sent carries a number of its own in its data set, so that any byte that leaves the
gateway can be traced to the one C-STORE it came from.
"""

from __future__ import annotations

import functools

import attrs
from pydicom.dataset import Dataset

from drimbox.dicom.explicit import ImplicitToExplicit
from drimbox.dicom.part10 import file_preamble
from drimbox.model import Instance as Listed
from drimbox.model import Series, Study
from tests.dicom import datasets

EXPLICIT, IMPLICIT, JPEG_LS = datasets.EXPLICIT, datasets.IMPLICIT, datasets.JPEG_LS
CT = "1.2.840.10008.5.1.4.1.1.2"
_MARK = "@@@@@@@@"
#: The site keeps what is under this root inside (DB.SO.200).
EXCLUDED_ROOT = "2.25.66"


@attrs.frozen
class Instance:
    """One instance: where it belongs, and how its data set is made."""

    uid: str
    study: str
    series: str
    syntax: str
    #: Rows and columns of its pixels.
    side: int = 8

    def data(self, number: int, *, syntax: str | None = None) -> bytes:
        """Encode copy `number`, in another syntax than its own if asked."""
        return _encoded(self, syntax or self.syntax).replace(_MARK.encode(), b"%08d" % number)

    def leaves(self, number: int, came_as: str, syntax: str) -> bytes:
        """Return the part a client is due: Part 10, implicit turned explicit, else as it came.

        The codec of these histories changes nothing but the name of the syntax.
        """
        data = self.data(number, syntax=came_as)
        if came_as == IMPLICIT and syntax == EXPLICIT:
            converter = ImplicitToExplicit()
            data = bytes(converter.feed(data)) + bytes(converter.finish())
        return bytes(file_preamble(CT, self.uid, syntax)) + data


@functools.cache
def _encoded(instance: Instance, syntax: str) -> bytes:
    made: Dataset = datasets.ct(undefined=instance.side % 16 == 8, pixels=bytes(2 * instance.side**2))
    made.SOPInstanceUID, made.AccessionNumber = instance.uid, _MARK
    made.StudyInstanceUID, made.SeriesInstanceUID = instance.study, instance.series
    made.Rows = made.Columns = instance.side
    data = datasets.encode(made, syntax)
    assert data.count(_MARK.encode()) == 1
    return data


@attrs.frozen
class Held:
    """One series of the PACS."""

    study: str
    uid: str
    instances: tuple[Instance, ...]
    #: What the KOS lists; None for the reference study, which has none.
    listed: frozenset[str] | None

    @property
    def due(self) -> frozenset[str] | None:
        """What a complete answer must hold."""
        if self.listed is None:
            return None
        return frozenset(uid for uid in self.listed if not uid.startswith(EXCLUDED_ROOT + "."))

    @property
    def allowed(self) -> frozenset[str]:
        """What an answer may hold: an instance newer than the KOS too."""
        return frozenset(one.uid for one in self.instances if not one.uid.startswith(EXCLUDED_ROOT + "."))


ONE, TWO, REFERENCE = "2.25.1000", "2.25.2000", "2.25.9000"


def _series(
    study: str,
    number: int,
    count: int,
    syntax: str,
    side: int,
    *,
    unlisted: int = 0,
    vanished: int = 0,
    excluded: int = 0,
) -> Held:
    uid = f"{study}.{number}"
    roots = [EXCLUDED_ROOT] * excluded + [uid] * (count - excluded)
    made = tuple(
        Instance(f"{root}.{number}.{place}", study, uid, syntax, side + 8 * (place % 2))
        for place, root in enumerate(roots, 1)
    )
    listed = {one.uid for one in made[: count - unlisted]} | {f"{uid}.99.{n}" for n in range(vanished)}
    return Held(study, uid, made, frozenset(listed) if study != REFERENCE else None)


#: Five explicit (one of them stays inside), three implicit; of another patient: four in JPEG-LS (one
#: newer than its KOS), two large; one series of which an instance has left the PACS; the reference study.
SERIES = (
    _series(ONE, 1, 5, EXPLICIT, 8, excluded=1),
    _series(ONE, 2, 3, IMPLICIT, 16),
    _series(TWO, 1, 4, JPEG_LS, 8, unlisted=1),
    _series(TWO, 2, 2, EXPLICIT, 80),
    _series(TWO, 3, 2, EXPLICIT, 8, vanished=1),
    _series(REFERENCE, 1, 3, EXPLICIT, 16),
)


def forged(instance: Instance, kind: int) -> Instance:
    """Return an instance under the same UID that says it belongs elsewhere."""
    if kind % 2:
        return attrs.evolve(instance, study="2.25.7777", series="2.25.7777.1")
    return attrs.evolve(instance, series=f"{instance.study}.77")


def catalogue(study: str) -> Study:
    """Return a study as the PACS answers a C-FIND for it."""
    return Study(
        study,
        tuple(
            Series(
                held.uid,
                "CT",
                tuple(Listed(one.uid, CT, place) for place, one in enumerate(held.instances)),
            )
            for held in SERIES
            if held.study == study
        ),
    )
