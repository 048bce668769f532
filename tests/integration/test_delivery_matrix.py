"""Whatever syntax and object a PACS holds, over real sockets: transcoded bit-exact, passed on, or refused.

DCMTK and OpenJPEG make what the PACS holds, DCMTK decodes what arrives: neither shares code with what
transcodes. The codecs one by one are tested in tests/dicom; here it is the way through the gateway.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import pytest_twisted
from openjpeg.utils import encode_buffer
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from drimbox.dicom import syntaxes
from drimbox.sim.studies import GeneratedStudy, make_study
from tests.dicom.images import image, texture
from tests.integration.hospital import (
    ACCEPT,
    ANY,
    EXPLICIT_LE,
    JPEG_LS,
    Hospital,
    behave,
    data_set,
    digests,
    read,
    received,
)
from tests.integration.test_delivery_transcoding import native_pixels

#: Pixels of an image by kind: 12 of 16 bits, signed; colour by plane; several frames.
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "12 bits": (texture(40, 48, 12), {"stored": 12}),
    "12 bits signed": (texture(40, 48, 12, signed=True), {"stored": 12}),
    "RGB by plane": (texture(40, 48, 8, samples=3), {"stored": 8, "photometric": "RGB", "planar": 1}),
    "three frames": (texture(40, 48, 12, frames=3), {"stored": 12}),
}
#: How DCMTK writes the syntaxes held; a Python function where it cannot.
HELD: dict[str, tuple[str, tuple[str, ...]]] = {
    "RLE": (syntaxes.RLE_LOSSLESS, ("dcmcrle",)),
    "JPEG-LS lossless": (JPEG_LS, ("dcmcjpls",)),
    "JPEG-LS near-lossless": (syntaxes.JPEG_LS_NEAR_LOSSLESS, ("dcmcjpls", "+en", "+md", "2")),
    "JPEG lossless, predictor 6": (syntaxes.JPEG_LOSSLESS, ("dcmcjpeg", "+el", "+sv", "6")),
    "JPEG lossless, predictor 1": (syntaxes.JPEG_LOSSLESS_SV1, ("dcmcjpeg", "+e1")),
    "Explicit Big Endian": (syntaxes.EXPLICIT_BE, ("dcmconv", "+tb")),
    "Implicit": (syntaxes.IMPLICIT_LE, ("dcmconv", "+ti")),
    "JPEG 2000 lossless": (syntaxes.JPEG2000_LOSSLESS, ()),
}
#: What decodes what is held, for the comparison.
DECODERS = {
    syntaxes.RLE_LOSSLESS: ("dcmdrle",),
    syntaxes.JPEG_LS_NEAR_LOSSLESS: ("dcmdjpls",),
    JPEG_LS: ("dcmdjpls",),
    syntaxes.JPEG_LOSSLESS: ("dcmdjpeg",),
    syntaxes.JPEG_LOSSLESS_SV1: ("dcmdjpeg",),
    syntaxes.EXPLICIT_BE: ("dcmconv", "+te"),
    syntaxes.IMPLICIT_LE: ("dcmconv", "+te"),
}


def held_as(study: GeneratedStudy, make: Callable[[Path], Dataset]) -> GeneratedStudy:
    """Put another object in the place of the one image of a study; it takes over its identity."""
    (instance,) = study.instances
    path, old = instance.path, dcmread(instance.path)
    new = make(path)
    for name in (
        "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "PatientName",
        "AccessionNumber", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
        "StudyID",
    ):  # fmt: skip
        if name in old:
            new[name] = old[name]
    new.file_meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
    new.save_as(path, enforce_file_format=True)
    changed = attrs.evolve(instance, sop_class_uid=str(new.SOPClassUID))
    series = attrs.evolve(study.series[0], instances=(changed,))
    return attrs.evolve(study, series=(series,))


def compressed(kind: str, how: str) -> Callable[[Path], Dataset]:
    """Make an image of that kind, held in that syntax."""
    pixels, options = KINDS[kind]
    syntax, command = HELD[how]

    def make(path: Path) -> Dataset:
        ds = image(pixels, **options)
        ds.file_meta = dcmread(path).file_meta
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.TransferSyntaxUID = UID(EXPLICIT_LE)
        if not command:
            return with_jpeg_2000(ds, pixels)
        plain, coded = path.with_suffix(".plain"), path.with_suffix(".coded")
        ds.save_as(plain)
        subprocess.run([*command, str(plain), str(coded)], check=True, capture_output=True, timeout=30)
        result = dcmread(coded)
        assert result.file_meta.TransferSyntaxUID == syntax
        if how == "JPEG-LS near-lossless":
            # As older devices leave it: only the stream itself tells that something was lost.
            for name in ("", "Ratio", "Method"):
                delattr(result, f"LossyImageCompression{name}")
        return result

    return make


def with_jpeg_2000(ds: Dataset, pixels: Any) -> Dataset:
    colour = ds.SamplesPerPixel == 3
    streams = [
        encode_buffer(
            frame.tobytes(), ds.Columns, ds.Rows, ds.SamplesPerPixel, ds.BitsStored,
            bool(ds.PixelRepresentation), photometric_interpretation=1 if colour else 0,
        )
        for frame in pixels
    ]  # fmt: skip
    ds.file_meta.TransferSyntaxUID = UID(syntaxes.JPEG2000_LOSSLESS)
    if colour:
        ds.PhotometricInterpretation, ds.PlanarConfiguration = "YBR_RCT", 0
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def truth(kind: str, how: str, path: Path) -> bytes:
    """The pixels that must arrive, colour by pixel: the original's, or what DCMTK makes of a lossy form."""
    pixels = KINDS[kind][0]
    if how != "JPEG-LS near-lossless":
        return bytes(pixels.tobytes())
    plain = path.with_suffix(".reference")
    command = DECODERS[HELD[how][0]]
    subprocess.run([*command, str(path), str(plain)], check=True, capture_output=True, timeout=30)
    found = dcmread(plain)
    if found.get("PlanarConfiguration") == 1:
        pixels = found.pixel_array  # always colour by pixel
        return bytes(pixels.tobytes())
    return bytes(found.PixelData[: pixels.nbytes])


@pytest.mark.peer("dcmcrle", "dcmcjpls", "dcmcjpeg", "dcmconv", "dcmdjpls", "dcmdjpeg")
@pytest.mark.requirement("DB.CS.83", "DB.SO.85", "DB.SO.41")
@pytest.mark.parametrize("how", HELD)
@pytest_twisted.ensureDeferred
async def test_what_the_pacs_holds_arrives_bit_exact_in_what_the_client_takes(
    hospital: Hospital, tmp_path: Path, how: str
) -> None:
    hospital.pacs[0].behaviour = behave(propose="stored")
    for number, kind in enumerate(KINDS):
        if how == "JPEG-LS near-lossless" and "signed" in kind:
            continue  # dcmcjpls does not make it
        folder = tmp_path / str(number)
        seed = 1000 + 10 * list(HELD).index(how) + number
        study = held_as(make_study(folder, instances=1, seed=seed), compressed(kind, how))
        expected = truth(kind, how, study.files[0])
        served = await hospital.publish(study)
        for wanted in (EXPLICIT_LE, JPEG_LS, syntaxes.JPEG_LOSSLESS_SV1):
            result = await hospital.fetch(served, accept=(ACCEPT.format(wanted),))
            assert result.complete, (kind, wanted, result.problem, result.error)
            (part,) = result.parts
            assert part.content is not None
            assert part.transfer_syntax == wanted
            arrived = read(part.content)
            assert arrived.file_meta.TransferSyntaxUID == wanted
            assert arrived.SOPInstanceUID == study.instances[0].sop_instance_uid
            if arrived.get("PlanarConfiguration") == 1:
                # Not transcoded, only its heads and numbers written anew: the planes are as they were.
                assert (wanted, how) in ((EXPLICIT_LE, "Implicit"), (EXPLICIT_LE, "Explicit Big Endian"))
                pixels = read(part.content).pixel_array.tobytes()
            else:
                pixels = native_pixels(part.content, folder)[: len(expected)]
            assert pixels == expected, (kind, wanted)
            lossy = arrived.get("LossyImageCompression", "00")
            assert lossy == ("01" if how == "JPEG-LS near-lossless" else "00"), (kind, wanted)


# -- what is never opened ------------------------------------------------------------------------------


def video(path: Path) -> Dataset:
    """An endoscopy whose one stream is a video; no decoder of ours is ever to look at it."""
    ds = image(texture(40, 48, 8, samples=3), stored=8, photometric="RGB")
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.1.1"
    ds.PhotometricInterpretation, ds.NumberOfFrames = "YBR_PARTIAL_420", 25
    ds.file_meta = dcmread(path).file_meta
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.TransferSyntaxUID = UID(syntaxes.MPEG4_41)
    ds.PixelData = encapsulate([b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


@pytest.mark.requirement("DB.CS.83", "DB.CS.86")
@pytest_twisted.ensureDeferred
async def test_video_passes_byte_for_byte_or_not_at_all(hospital: Hospital, tmp_path: Path) -> None:
    study = held_as(make_study(tmp_path, instances=1, seed=1200), video)
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    for accept in (ANY, ACCEPT.format(syntaxes.MPEG4_41)):
        result = await hospital.fetch(served, accept=(accept,))
        assert result.complete, result.problem
        assert received(result) == digests(study)
        assert result.parts[0].transfer_syntax == syntaxes.MPEG4_41
    refused = await hospital.fetch(served, accept=(ACCEPT.format(EXPLICIT_LE), ACCEPT.format(JPEG_LS)))
    assert refused.status == 406
    assert refused.problem is not None
    assert syntaxes.MPEG4_41 in refused.problem["detail"]


def shipped(name: str) -> Callable[[Path], Dataset]:
    def make(path: Path) -> Dataset:
        found = get_testdata_file(name, download=False)
        if found is None:
            pytest.skip(f"this pydicom does not ship {name}")
        return dcmread(str(found))

    return make


@pytest.mark.requirement("DB.CS.86")
@pytest.mark.parametrize("name", ["waveform_ecg.dcm", "rtplan.dcm", "reportsi.dcm"])
@pytest_twisted.ensureDeferred
async def test_waveforms_plans_and_reports_of_other_makers_pass(
    hospital: Hospital, tmp_path: Path, name: str
) -> None:
    seed = 1210 + len(name)
    study = held_as(make_study(tmp_path, instances=1, seed=seed), shipped(name))
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    # Whatever the client likes: they have no pixels to encode.
    result = await hospital.fetch(served, accept=(ACCEPT.format(JPEG_LS), ACCEPT.format(EXPLICIT_LE)))
    assert result.complete, result.problem
    (part,) = result.parts
    assert part.transfer_syntax == EXPLICIT_LE
    assert part.content is not None
    held = dcmread(study.files[0])
    if held.file_meta.TransferSyntaxUID == EXPLICIT_LE:
        assert received(result) == digests(study)
    arrived = read(part.content)
    assert arrived.SOPClassUID == held.SOPClassUID
    known = [element for element in held if not element.tag.is_private and element.tag.element]
    assert known
    assert all(arrived[element.tag].value == element.value for element in known)


@pytest.mark.peer("dcmconv")
@pytest.mark.threat("DICOM deflate bomb")
@pytest_twisted.ensureDeferred
async def test_what_the_pacs_can_only_send_deflated_is_406(hospital: Hospital, tmp_path: Path) -> None:
    """Never negotiated: a kilobyte may hide a gigabyte."""

    def deflated(path: Path) -> Dataset:
        ds = dcmread(path)
        ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
        return ds

    study = held_as(make_study(tmp_path, instances=1, transfer_syntax=EXPLICIT_LE, seed=1220), deflated)
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    result = await hospital.fetch(served, accept=(ANY,))
    assert result.status == 406, result
    assert result.problem is not None
    assert result.problem["code"] == "E1104"


# -- several syntaxes in one answer --------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> GeneratedStudy:
    """A series of four images, two held compressed and two not."""
    study = make_study(tmp_path, instances=4, transfer_syntax=JPEG_LS, seed=1230)
    twin = make_study(tmp_path / "twin", instances=4, transfer_syntax=EXPLICIT_LE, seed=1230)
    for number in (1, 3):
        study.files[number].write_bytes(twin.files[number].read_bytes())
    assert [i.sop_instance_uid for i in study.instances] == [i.sop_instance_uid for i in twin.instances]
    return study


@pytest.mark.requirement("DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_each_part_names_the_syntax_of_the_context_it_came_on(
    hospital: Hospital, mixed: GeneratedStudy
) -> None:
    """A PACS with one presentation context a syntax: the first context is not the one of every image."""
    served = await hospital.publish(mixed)
    proposals: tuple[Literal["stored", "each"], ...] = ("stored", "each")
    for how in proposals:
        hospital.pacs[0].behaviour = behave(propose=how)
        result = await hospital.fetch(served, accept=(ANY,))
        assert result.complete, result.problem
        assert received(result) == digests(mixed)
        found = {}
        for part in result.parts:
            assert part.content is not None
            arrived = read(part.content)
            assert arrived.file_meta.TransferSyntaxUID == part.transfer_syntax
            assert data_set(part.content)
            found[str(arrived.SOPInstanceUID)] = part.transfer_syntax
        expected = [JPEG_LS, EXPLICIT_LE, JPEG_LS, EXPLICIT_LE]
        assert [found[i.sop_instance_uid] for i in mixed.instances] == expected
