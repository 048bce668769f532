"""What the options of a site do to every instance on its way (DB.SO.39, DB.SO.134, DB.SO.200)."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from drimbox.dicom.scan import Header
from drimbox.dicom.traits import TraitInserter
from drimbox.model import Patient
from drimbox.source.filters import UidRootFilter


@attrs.frozen
class Handling:
    """By default nothing: instances leave as the PACS sends them."""

    #: Raises `ImageIdentityMismatch` for an instance of somebody else (DB.SO.134).
    examine: Callable[[Header], None] | None = None
    #: Whose INS traits are written into each instance (DB.SO.39).
    traits_of: Patient | None = None
    #: What stays inside (DB.SO.200).
    roots: UidRootFilter = attrs.field(factory=UidRootFilter)

    def inserter(self) -> TraitInserter | None:
        """Return a fresh inserter for one instance, None when no traits are written."""
        return TraitInserter(self.traits_of) if self.traits_of is not None else None
