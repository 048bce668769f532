"""Keeping some instances inside the structure: the SOP Instance UID root filter (DB.SO.199, DB.SO.200).

Objects that an algorithm made (overlays, measurements, its own reports) are recognised by the root of the
UIDs it gives. They are left out of the KOS when it is made or updated, and not delivered when images are
asked for: the same filter stands at both places, so that a KOS never promises what is not delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import attrs

from drimbox.model import Instance, Study, is_uid


class UidRootFilter:
    """Recognises the SOP Instance UIDs under some roots; without roots, none.

    A root ends at a component: `1.2.3` is the root of `1.2.3` and `1.2.3.4`, not of `1.2.30`. Raises
    `ValueError` for a root that is no UID; a dot at its end is allowed.
    """

    def __init__(self, roots: Iterable[str] = ()) -> None:
        bare = [root.strip().removesuffix(".") for root in roots]
        for root in bare:
            if not is_uid(root):
                raise ValueError("a root of UIDs is made of digits and dots")
        self._prefixes = tuple(f"{root}." for root in bare)

    def __bool__(self) -> bool:
        """Return whether there is anything to filter."""
        return bool(self._prefixes)

    def excludes(self, sop_instance_uid: str) -> bool:
        """Say whether an instance stays inside (DB.SO.200)."""
        return f"{sop_instance_uid}.".startswith(self._prefixes)

    def kept(self, sop_instance_uids: Collection[str]) -> frozenset[str]:
        """Return the instances that may leave."""
        return frozenset(uid for uid in sop_instance_uids if not self.excludes(uid))

    def study(self, study: Study) -> Study:
        """Return the study as a KOS may show it; a series left without instance is left out (DB.SO.199)."""
        if not self:
            return study
        return restricted(study, lambda one: not self.excludes(one.sop_instance_uid))


def restricted(study: Study, kept: Callable[[Instance], bool]) -> Study:
    """Return the study with the instances that are `kept`; a series left without instance is left out."""
    series = (
        attrs.evolve(each, instances=tuple(one for one in each.instances if kept(one)))
        for each in study.series
    )
    return attrs.evolve(study, series=tuple(each for each in series if each.instances))
