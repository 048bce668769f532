"""The sites and the structures that work there."""

from __future__ import annotations

import attrs

from drimbox.config.archives import Native, Pacs, SpeedTestSettings
from drimbox.config.pairs import Certificate


@attrs.frozen
class SiteResyncSettings:
    """`[site.resync]`: how the link with the archive of one site is verified (DB.SO.28)."""

    #: StudyInstanceUID that it always holds; None: some study that the walk has just found.
    control_study: str | None = None


@attrs.frozen
class Structure:
    """`[[structure]]`: a situation d'exercice with its ORG_AUTH_CLI and ORG_SIGN pairs."""

    #: National identifier (Struct_IdNat).
    id: str
    name: str
    authentication: Certificate
    signature: Certificate
    #: Internal identifier of this structure in the gateway (audit 3.8.1); default: its national one.
    internal_id: str = ""


@attrs.frozen
class Site:
    """`[[site]]`: one PACS or native archive with its pair of FQDN (DB.SO.173, requirements.md 3.12)."""

    name: str
    #: `db1.349.mesimagesmedicales.fr`
    wado_fqdn: str
    #: `vi1.349.mesimagesmedicales.fr`
    viewer_fqdn: str
    #: None when the images are in a native archive.
    pacs: Pacs | None
    #: SSL_SERV pair of the WADO FQDN (DB.SO.90).
    wado_certificate: Certificate
    #: Market pair of the viewer FQDN; None while no viewer is served.
    viewer_certificate: Certificate | None = None
    #: Names of the `[[ris]]` whose studies may be here; empty is all.
    ris: tuple[str, ...] = ()
    #: Ids of the `[[structure]]` that work here; empty is all.
    structures: tuple[str, ...] = ()
    #: (0040,E011) of the manifests; None leaves it out.
    retrieve_location_uid: str | None = None
    #: Deliver nothing whose patient identifier is not the KOS's: E1006 (DB.SO.134).
    check_identity: bool = False
    #: Publish nothing whose patient identifier in the PACS is not the report's: E001 (DB.SO.16).
    check_feed_identity: bool = False
    #: Publish nothing whose birth date in the PACS is not the report's: E001 (DB.SO.191).
    check_feed_birth_date: bool = False
    #: Both checks: what the PACS does not tell is a mismatch too.
    check_feed_strictly: bool = False
    #: Write the INS traits of the KOS into every instance delivered (DB.SO.39).
    insert_traits: bool = False
    #: Roots of SOP Instance UIDs that stay inside: left out of KOS and deliveries (DB.SO.199, 200).
    excluded_uid_roots: tuple[str, ...] = ()
    #: List the IOCM rejection notes that the PACS keeps in its studies (interfaces.md 3.2).
    list_rejection_notes: bool = False
    speedtest: SpeedTestSettings = SpeedTestSettings()
    resync: SiteResyncSettings = SiteResyncSettings()
    #: None when the images are in a PACS.
    native: Native | None = None

    @property
    def archive(self) -> str:
        """Name of what holds its images, PACS or native archive."""
        holder = self.pacs or self.native
        assert holder is not None, "the configuration has one of the two"
        return holder.name
