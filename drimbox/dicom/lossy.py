"""What an image must say once it has lost something (PS3.3 C.7.6.1.1.5).

`(0028,2110)` becomes `01` and never goes back; the ratio and the method of each lossy step stand in
`(0028,2112)` and `(0028,2114)`, one value a step, in the order they were taken: ours is appended.

The SOP Instance UID stays. A derived image that is kept in an archive must have one of its own; a
transcoded one is the form in which this instance is answered to this request, as PS3.18 has it for the
representations of a resource. The manifest names the instance by that UID, the Consumer counts what it
receives against the manifest (DB.CO.66), and a new UID would be an instance that neither knows. The three
elements tell every reader that these are not the stored bits, and the stored ones can be asked for again.
For the same reason Image Type and Derivation Description stay what the modality wrote.
"""

from __future__ import annotations

from typing import Final

from drimbox.dicom.syntaxes import (
    JPEG2000,
    JPEG2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LS_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
)

#: Defined terms of Lossy Image Compression Method. The lossless syntaxes are there for streams that lie.
METHODS: Final = {
    JPEG_BASELINE: "ISO_10918_1",
    JPEG_EXTENDED: "ISO_10918_1",
    JPEG_LS_LOSSLESS: "ISO_14495_1",
    JPEG_LS_NEAR_LOSSLESS: "ISO_14495_1",
    JPEG2000_LOSSLESS: "ISO_15444_1",
    JPEG2000: "ISO_15444_1",
}
#: A DS has sixteen characters at most, a CS as well.
_MAX_STEPS: Final = 16


def ratio_text(decoded: int, compressed: int) -> str:
    """Write a compression ratio as a DS: six significant digits, no exponent."""
    ratio = min(decoded / max(compressed, 1), 9_999_999.0)
    return f"{ratio:.4f}"[:8].rstrip("0").rstrip(".")


def appended(before: str, after: str, steps: int) -> str:
    """Append one value to a multi-valued text that should already have `steps` values.

    Missing ones are left empty, so that ratios and methods stay side by side (PS3.3 C.7.6.1.1.5.2).
    """
    values = before.split("\\") if before else []
    values += [""] * (steps - len(values))
    return "\\".join([*values, after][-_MAX_STEPS:])


def steps_of(ratios: str, methods: str) -> int:
    """Return how many lossy steps a header already tells of."""
    return max(len(text.split("\\")) if text else 0 for text in (ratios, methods))
