"""Data sets made on the spot with pydicom, and their encodings."""

from __future__ import annotations

import itertools
import warnings

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG = "1.2.840.10008.1.2.2"
JPEG_LS = "1.2.840.10008.1.2.4.80"


def encode(dataset: Dataset, transfer_syntax_uid: str) -> bytes:
    """Write a data set without file meta."""
    stream = DicomBytesIO()
    stream.is_implicit_VR = transfer_syntax_uid == IMPLICIT
    stream.is_little_endian = transfer_syntax_uid != BIG
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dataset(stream, dataset)
    return stream.getvalue()


def code(value: str, *, undefined: bool = False) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", "Meaning"
    item.is_undefined_length_sequence_item = undefined
    return item


def ct(*, undefined: bool = False, pixels: bytes = b"\x01\x02" * 64) -> Dataset:
    """Make a CT image with nested sequences, of defined or undefined length, before its series UID."""
    outer = Dataset()
    outer.ReferencedSOPClassUID, outer.ReferencedSOPInstanceUID = "1.2.3", "1.2.3.4"
    outer.PurposeOfReferenceCodeSequence = Sequence([code("121311", undefined=undefined), code("2")])
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = undefined
    outer.is_undefined_length_sequence_item = undefined
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.SOPInstanceUID = "2.25.103"
    ds.StudyDate, ds.Modality, ds.AccessionNumber = "20260102", "CT", "A1"
    ds.StudyDescription = "Scanner de l'été"
    ds.ReferencedImageSequence = Sequence([outer, outer])
    ds["ReferencedImageSequence"].is_undefined_length = undefined
    ds.SourceImageSequence = Sequence([])
    block = ds.private_block(0x0009, "ACME 1.0", create=True)
    block.add_new(0x01, "OB", b"\0" * 300)
    block.add_new(0x02, "LO", "private")
    ds.PatientName, ds.PatientID = "NOM^PRÉNOM", "IPP-42"
    ds.PatientBirthDate, ds.PatientSex = "19840701", "F"
    ds.SliceThickness = "1.25"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.101", "2.25.102"
    ds.InstanceNumber = 7
    ds.ImagePositionPatient = ["1", "2", "3"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 1
    ds.SmallestImagePixelValue, ds.LargestImagePixelValue = -5, 3000
    ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
    ds.add_new(0x7FE00010, "OW", pixels)
    return ds


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut `data` at the given places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    edges = [0, *places, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]
