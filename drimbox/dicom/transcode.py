"""An instance in one transfer syntax turned into the same instance in another (DB.CS.83, DB.SO.41).

    bytes in ── explicit little endian ──> outline ──> frames ──> words ──> frames ──> spliced bytes out

The head is first brought to Explicit VR Little Endian, if it is not. Then only what must change changes:
the pixel data element, and in group 0028 what the new encoding makes untrue (PS3.5 8.2, PS3.3 C.7.6.3).
Everything else keeps its bytes and its place: private elements, overlays, palettes, sequences. Only an icon
that was compressed with the image becomes native, since it may not stay in another syntax.
Frames go through one at a time, so the memory needed is that of the instance before and after, and one
frame.

Pure: no process, no reactor, no clock. It calls codecs, so it runs in `codecworker` and nowhere else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import attrs

from drimbox.config import TranscodingSettings
from drimbox.dicom import codecs, fragments, lossy
from drimbox.dicom.bigendian import to_little
from drimbox.dicom.elements import ITEM, Buffer, DatasetRefused, Encoding, encoding_of
from drimbox.dicom.explicit import ImplicitToExplicit
from drimbox.dicom.outline import Element, items_of, outline, spliced, written
from drimbox.dicom.pixels import (
    ICONS,
    LOSSY,
    LOSSY_METHOD,
    LOSSY_RATIO,
    OFFSET_TABLES,
    PHOTOMETRIC,
    PIXEL_DATA,
    PLANAR,
    PixelFacts,
    check_frames,
    check_native,
    read_facts,
    text_of,
)
from drimbox.dicom.syntaxes import ENCAPSULATED, EXPLICIT_LE, is_lossless
from drimbox.dicom.targets import producible

_IMAGE_PIXEL_LENGTH = 0x00280000
_PIXEL_LENGTH = 0x7FE00000


@attrs.define
class _Image:
    """What has been learnt of the image while its frames went by."""

    facts: PixelFacts
    #: Photometric interpretation of what is written.
    photometric: str
    #: True when the source itself had lost something, and bytes of its compressed frames.
    was_lossy: bool = False
    source_bytes: int = 0


def transcode(dataset: Buffer, source: str, target: str, settings: TranscodingSettings) -> list[Buffer]:
    """Turn a whole data set without file meta from `source` into `target`; return it in pieces.

    Lossless targets give the very words of the source back; lossy ones are marked as such (`lossy`).
    Raises `DatasetRefused` when the data set is not what it says it is, exceeds a limit of `settings`,
    or cannot be held by `target`.
    """
    if len(dataset) > settings.max_instance_bytes:
        raise DatasetRefused(f"{len(dataset)} bytes, {settings.max_instance_bytes} allowed")
    data = _explicit(dataset, source)
    elements = outline(data, Encoding.EXPLICIT_LITTLE)
    facts = read_facts(data, elements, Encoding.EXPLICIT_LITTLE)
    if target == source or (target == EXPLICIT_LE and (facts is None or source not in ENCAPSULATED)):
        return [data]
    if facts is None or target not in producible(source, facts):
        raise DatasetRefused("this instance cannot be turned into that transfer syntax")
    codecs.check_kind(facts)
    image = _Image(facts, facts.photometric)
    places = {element.tag: element for element in elements}
    frames = [
        _encoded(words, photometric, target, image, settings)
        for words, photometric in _words(data, places, source, image, settings)
    ]
    changes = _header(data, places, source, target, image, frames)
    if ICONS in places and source in ENCAPSULATED:
        changes |= _icons(data, places[ICONS], source, settings)
    if target == EXPLICIT_LE:
        changes[PIXEL_DATA] = _native(frames, facts)
    else:
        changes[PIXEL_DATA] = fragments.encapsulated(frames)
    return spliced(data, elements, changes)


def _icons(
    data: Buffer, sequence: Element, source: str, settings: TranscodingSettings
) -> dict[int, list[Buffer] | None]:
    """Return an Icon Image Sequence whose pixels are native, if any were compressed.

    Inside a sequence, pixel data is native or in the syntax of the whole (PS3.5 A.4): a compressed icon
    could not stay. One that cannot be decoded is left out: it is optional, and only a preview.
    """
    rewritten: list[Buffer] = []
    try:
        items = [data[start:end] for start, end in items_of(data, sequence)]
        if not any(_is_compressed(item) for item in items):
            return {}
        for item in items:
            pieces = transcode(item, source, EXPLICIT_LE, settings) if _is_compressed(item) else [item]
            size = sum(len(piece) for piece in pieces)
            rewritten += [struct.pack("<HHI", ITEM >> 16, ITEM & 0xFFFF, size), *pieces]
    except DatasetRefused:
        return {ICONS: None}
    size = sum(len(piece) for piece in rewritten)
    return {ICONS: [struct.pack("<HH2sHI", ICONS >> 16, ICONS & 0xFFFF, b"SQ", 0, size), *rewritten]}


def _is_compressed(item: Buffer) -> bool:
    elements = outline(item, Encoding.EXPLICIT_LITTLE)
    return any(element.tag == PIXEL_DATA and element.undefined for element in elements)


def _explicit(dataset: Buffer, source: str) -> Buffer:
    encoding = encoding_of(source)
    if encoding is Encoding.IMPLICIT_LITTLE:
        converter = ImplicitToExplicit()
        return converter.feed(dataset) + converter.finish()
    if encoding is Encoding.EXPLICIT_BIG:
        return to_little(dataset)
    return dataset


def _words(
    data: Buffer, places: dict[int, Element], source: str, image: _Image, settings: TranscodingSettings
) -> Iterator[tuple[codecs.Words, str]]:
    """Give the words of each frame, with their photometric interpretation."""
    facts, place = image.facts, places[PIXEL_DATA]
    limit = settings.max_decoded_bytes
    view = memoryview(data)
    if source not in ENCAPSULATED:
        if place.undefined:
            raise DatasetRefused("fragments under a native transfer syntax")
        check_native(facts, place.end - place.value, limit)
        photometric = "YBR_FULL" if facts.photometric == "YBR_FULL_422" else facts.photometric
        size = facts.expected // facts.frames
        for number in range(facts.frames):
            start = place.value + number * size
            yield codecs.native_words(view[start : start + size], facts), photometric
        return
    if not place.undefined:
        raise DatasetRefused("native pixel data under an encapsulated transfer syntax")
    frames = fragments.split(data, place.value, place.end, facts.frames, _extended(data, places))
    check_frames(facts, source, frames, limit)
    for parts in frames:
        stream = fragments.joined(parts)
        image.source_bytes += len(stream)
        words, photometric, was_lossy = codecs.decode(source, stream, facts)
        image.was_lossy = image.was_lossy or was_lossy
        yield words, photometric


def _extended(data: Buffer, places: dict[int, Element]) -> Sequence[int] | None:
    place = places.get(OFFSET_TABLES[0])
    if place is None or place.undefined or (place.end - place.value) % 8:
        return None
    return struct.unpack_from(f"<{(place.end - place.value) // 8}Q", data, place.value)


def _encoded(
    words: codecs.Words, photometric: str, target: str, image: _Image, settings: TranscodingSettings
) -> Buffer:
    if target == EXPLICIT_LE:
        image.photometric = photometric
        return memoryview(words).cast("B") if words.flags.c_contiguous else words.tobytes()
    try:
        stream, image.photometric = codecs.encode(target, words, image.facts, photometric, settings)
    except (RuntimeError, ValueError, TypeError) as error:
        raise DatasetRefused(f"a frame cannot be encoded: {type(error).__name__}") from error
    return stream


def _native(frames: Sequence[Buffer], facts: PixelFacts) -> list[Buffer]:
    """Write native pixel data: OB for bytes, OW for words (PS3.5 8.1.2, A.2)."""
    size = sum(len(frame) for frame in frames)
    vr = b"OB" if facts.bits_allocated <= 8 else b"OW"
    if size > 0xFFFFFFFE:
        raise DatasetRefused("native pixel data of more than 4 GiB")
    head = struct.pack("<HH2sHI", PIXEL_DATA >> 16, PIXEL_DATA & 0xFFFF, vr, 0, size + size % 2)
    return [head, *frames, b"\0" * (size % 2)]


def _header(
    data: Buffer,
    places: dict[int, Element],
    source: str,
    target: str,
    image: _Image,
    frames: Sequence[Buffer],
) -> dict[int, list[Buffer] | None]:
    """Return the elements that the new encoding makes untrue, as they must be now."""

    def text(tag: int) -> str:
        place = places.get(tag)
        return "" if place is None else text_of(bytes(memoryview(data)[place.value : place.end]))

    facts = image.facts
    # Group lengths are retired, and of these two groups no longer true; so are the offset tables.
    changes: dict[int, list[Buffer] | None] = dict.fromkeys(
        (_IMAGE_PIXEL_LENGTH, _PIXEL_LENGTH, *OFFSET_TABLES)
    )
    if image.photometric != facts.photometric:
        changes[PHOTOMETRIC] = written(PHOTOMETRIC, b"CS", image.photometric.encode("ascii"))
    if facts.samples > 1:
        # Every encoder here, and the native form, writes colour by pixel.
        changes[PLANAR] = written(PLANAR, b"US", b"\0\0")
    steps = lossy.steps_of(text(LOSSY_RATIO), text(LOSSY_METHOD))
    decoded = facts.frames * facts.frame_bytes
    lost: list[tuple[str, int]] = []
    if image.was_lossy and text(LOSSY) != "01":
        # Decoding would wipe out the only sign that something was lost before: say it in the header.
        lost.append((lossy.METHODS[source], image.source_bytes))
    if not is_lossless(target):
        lost.append((lossy.METHODS[target], sum(len(frame) for frame in frames)))
    if not lost:
        return changes
    ratios, methods = text(LOSSY_RATIO), text(LOSSY_METHOD)
    for method, compressed in lost:
        ratios = lossy.appended(ratios, lossy.ratio_text(decoded, compressed), steps)
        methods = lossy.appended(methods, method, steps)
        steps += 1
    changes[LOSSY] = written(LOSSY, b"CS", b"01")
    changes[LOSSY_RATIO] = written(LOSSY_RATIO, b"DS", ratios.encode("ascii"))
    changes[LOSSY_METHOD] = written(LOSSY_METHOD, b"CS", methods.encode("ascii"))
    return changes
