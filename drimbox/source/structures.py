"""The configured structures as a report names them, a FINESS with or without its prefix."""

from __future__ import annotations

from drimbox.config import Config, Structure


def same_structure(one: str, other: str) -> bool:
    """Say whether two national identifiers name one structure.

    A FINESS is also given bare, without its prefix 1; its length tells (interfaces.md 0.1).
    """
    return _bare(one) == _bare(other)


def _bare(identifier: str) -> str:
    prefixed = len(identifier) == 10 and identifier.startswith("1")
    return identifier[1:] if prefixed else identifier


class Structures:
    """Finds a structure, and what the audit calls it (requirements.md 2.5, 3.8.1)."""

    def __init__(self, config: Config) -> None:
        self._sites = config.sites
        self._known = {structure.id: structure for structure in config.structures}

    def find(self, identifier: str) -> Structure | None:
        """Return the structure whose certificates speak for `identifier`, None when none is configured."""
        found = self._known.get(identifier)
        if found is None:
            alike = (each for each in self._known.values() if same_structure(each.id, identifier))
            found = next(alike, None)
        return found

    def internal_id(self, identifier: str) -> str:
        """Return what this gateway calls the structure, empty when it has no name of its own."""
        structure = self.find(identifier)
        return structure.internal_id if structure is not None else ""

    def only_at(self, site: str) -> str:
        """Return the one structure that works at the site of this name, empty when several do, or none."""
        for each in self._sites:
            if each.name == site:
                here = each.structures or tuple(self._known)
                return here[0] if len(here) == 1 else ""
        return ""

    def source_name(self, identifier: str) -> str:
        """Return the DNS name of the gateway for the audit: the first site where the structure works."""
        structure = self.find(identifier)
        for site in self._sites:
            if not site.structures or (structure is not None and structure.id in site.structures):
                return site.wado_fqdn
        return self._sites[0].wado_fqdn
