"""Is a stored object an image? The content tree of a manifest must say so (interfaces.md 3.3).

A content item of type `IMAGE` refers to an image, `COMPOSITE` to any other object. The SOP class decides:
the registry of PS3.6 calls image classes "... Image Storage"; the few images whose name does not say so
are listed here. RT Dose has pixels but is no image to SR readers. A class nobody registered is a
`COMPOSITE`: readers such as DCMTK's refuse the whole document when an `IMAGE` item names a class that
they do not know, and take any class in a `COMPOSITE` one.
"""

from __future__ import annotations

import functools

from pydicom.uid import UID

#: Image storage classes whose registered name lacks "Image Storage".
_IMAGES_UNNAMED = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.6.2",  # Enhanced US Volume
        "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.77.1.5.8",  # Ophthalmic OCT B-scan Volume Analysis
        "1.2.840.10008.5.1.4.1.1.81.1",  # Ophthalmic Thickness Map
        "1.2.840.10008.5.1.4.1.1.82.1",  # Corneal Topography Map
    }
)


@functools.lru_cache(maxsize=1024)
def value_type(sop_class_uid: str) -> str:
    """Return the value type of a reference to an object of this class: `IMAGE` or `COMPOSITE`."""
    if sop_class_uid in _IMAGES_UNNAMED or "Image Storage" in UID(sop_class_uid).name:
        return "IMAGE"
    return "COMPOSITE"
