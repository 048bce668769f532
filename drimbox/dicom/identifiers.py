"""Identifiers of C-FIND and C-MOVE: pydicom data sets out of and into the negotiated syntax (PS3.4 C.4).

Only Implicit and Explicit VR Little Endian are ever proposed for queries, so only these are written.
"""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

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
        dataset = read_dataset(BytesIO(data), transfer_syntax == IMPLICIT_LE, True, bytelength=len(data))
        _settle(dataset)
    except Exception as error:
        # pydicom raises whatever its decoding meets.
        raise PacsCommunicationError(f"identifiant illisible : {type(error).__name__}") from error
    return dataset


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
