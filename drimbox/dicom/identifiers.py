"""Identifiers of C-FIND and C-MOVE: pydicom data sets out of and into the negotiated syntax (PS3.4 C.4).

Only Implicit and Explicit VR Little Endian are ever proposed for queries, so only these are written.

What a PACS answers of an image is a handful of identifiers, a hundred thousand times over: these are read
without pydicom, which takes thirty times as long for them (`ImageAnswer`).
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from typing import Any, Final, Protocol

from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from drimbox.dicom.elements import SHORT_VRS, UNDEFINED
from drimbox.errors import PacsCommunicationError

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
#: Largest identifier accepted in one answer, bytes; real ones stay under 10 KB.
MAX_IDENTIFIER = 256 * 1024


#: Elements of an image's answer, all of them ASCII, by what pydicom calls those that are read.
_PLAIN: Final = {
    0x00080005: "",
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x00080052: "",
    0x00080054: "",
    0x00080056: "",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00200013: "InstanceNumber",
}
_PLAIN_VRS: Final = frozenset({b"UI", b"IS", b"CS", b"AE"})
_IMPLICIT_HEAD, _EXPLICIT_HEAD = struct.Struct("<HHI"), struct.Struct("<HH2sH")


class Identifier(Protocol):
    """What a C-FIND answer is read through."""

    def get(self, key: str, /) -> Any:
        """Return the value of the element with this keyword, None when the answer has none."""


class ImageAnswer:
    """An answer that holds nothing but identifiers of an image (`read_identifier`)."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def get(self, key: str, /) -> str | None:
        """Return a value as text, None when there is none."""
        return self._values.get(key)


def read_identifier(data: bytes, transfer_syntax: str) -> Identifier:
    """Read a C-FIND answer. Raises `PacsCommunicationError` on garbage."""
    return _image_answer(data, transfer_syntax == IMPLICIT_LE) or decode_dataset(data, transfer_syntax)


def _image_answer(data: bytes, implicit: bool) -> ImageAnswer | None:
    """Read an answer about an image; None when anything else is in it, or anything is wrong with it."""
    values: dict[str, str] = {}
    position, end = 0, len(data)
    while end - position >= 8:
        if implicit:
            group, element, length = _IMPLICIT_HEAD.unpack_from(data, position)
        else:
            group, element, vr, length = _EXPLICIT_HEAD.unpack_from(data, position)
            if vr not in _PLAIN_VRS:
                return None
        keyword = _PLAIN.get(group << 16 | element)
        start, position = position + 8, position + 8 + length
        if keyword is None or position > end:
            return None
        if keyword:
            values[keyword] = data[start:position].rstrip(b"\0 ").decode("ascii", "replace")
    return ImageAnswer(values) if position == end else None


def encode_dataset(dataset: Dataset, transfer_syntax: str) -> bytes:
    """Write an identifier in the negotiated syntax (Implicit or Explicit VR Little Endian)."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = transfer_syntax == IMPLICIT_LE
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def decode_dataset(data: bytes, transfer_syntax: str) -> Dataset:
    """Read an identifier. Raises `PacsCommunicationError` on garbage.

    A value that is not what its VR says (a number with letters) is left out as if it were not there: one
    bad optional value must not hide a whole study.
    """
    try:
        _measure(data, transfer_syntax == IMPLICIT_LE)
        # pydicom would log the values that are not what their VR says: these are a patient's. And Python
        # remembers every distinct warning for ever: a PACS could fill our memory with tags nobody knows.
        with disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = read_dataset(BytesIO(data), transfer_syntax == IMPLICIT_LE, True)
            _settle(dataset)
    except Exception as error:
        # pydicom raises whatever its decoding meets.
        raise PacsCommunicationError(f"identifiant illisible : {type(error).__name__}") from error
    return dataset


def _measure(data: bytes, implicit: bool) -> None:
    """Raise ValueError when an element promises more bytes than there are: pydicom takes what it finds."""
    position, end = 0, len(data)
    while position < end:
        head, length = 8, int.from_bytes(data[position + 4 : position + 8], "little")
        if not implicit and data[position + 4 : position + 6] in SHORT_VRS:
            length >>= 16
        elif not implicit:
            head, length = 12, int.from_bytes(data[position + 8 : position + 12], "little")
        if length == UNDEFINED:
            # A sequence with delimiters: pydicom misses them by itself.
            return
        position += head + length
    if position != end:
        raise ValueError("element cut short")


def _settle(dataset: Dataset) -> None:
    """Decode every element now: pydicom does it lazily, in whoever reads the value first."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except RecursionError:
            raise
        except Exception:
            del dataset[tag]
            continue
        if element.VR == "SQ":
            for item in element.value:
                _settle(item)
