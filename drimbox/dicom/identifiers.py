"""Identifiers of C-FIND and C-MOVE: pydicom data sets out of and into the negotiated syntax (PS3.4 C.4).

Only Implicit and Explicit VR Little Endian are ever proposed for queries, so only these are written.
"""

from __future__ import annotations

import warnings
from io import BytesIO

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
