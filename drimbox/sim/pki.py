"""A test PKI shaped like IGC-Santé, so that every certificate rule can be broken on purpose.

One root (`ACR-EL`) signs one intermediate (`ACI-EL-ORG`), which signs every organisation certificate:
SSL_SERV (one per WADO FQDN), ORG_AUTH_CLI and ORG_SIGN (one pair per structure), the whitelist signer,
the DMP and the Pro Santé Connect servers. A market authority signs the viewer certificates. Names carry
`O`, `ST` and `C` with accents and parentheses, as real ones do, because that is what breaks naive DN
comparisons. Private keys never leave the folder and are readable by their owner alone.

Everything is made at set-up; nothing here is secret or fit for production.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from drimbox.sim.authority import (
    Authority,
    Pair,
    PrivateKey,
    authority_name,
    key_pem,
    organisation_name,
    pem,
    write_private,
)

__all__ = ["Authority", "Pair", "Pki", "StructurePairs", "make_pki", "organisation_name"]

WHITELIST_CN = "Liste Blanche DRIM-M PROD"
WHITELIST_OU = "318751275100020"
DEFAULT_SITES = ("db1.349.example",)
DEFAULT_STRUCTURES: Mapping[str, str] = {"499700000001006": "CABINET D'IMAGERIE DE L'ÉTÉ"}

_SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
_CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_MAIL = (ExtendedKeyUsageOID.EMAIL_PROTECTION,)


@attrs.frozen
class StructurePairs:
    """The two certificates of a situation d'exercice (interfaces.md 4.6)."""

    id: str
    name: str
    #: ORG_AUTH_CLI, for mutual TLS towards the DMP.
    authentication: Pair
    #: ORG_SIGN, for the VIHF and the XAdES document.
    signature: Pair


@attrs.frozen
class Pki:
    """The files of a test PKI, and the means to issue more certificates, good or bad."""

    folder: Path
    #: Roots a verifier configures: ACR-EL and ACI-EL-ORG in one PEM file.
    roots: Path
    root: Path
    intermediate: Path
    #: CRLs of root and intermediate in one PEM file; the intermediate's alone in DER, as published.
    crls: Path
    crl_der: Path
    market_root: Path
    #: SSL_SERV pairs by FQDN.
    sites: Mapping[str, Pair]
    #: Market pairs by viewer FQDN.
    viewers: Mapping[str, Pair]
    structures: Mapping[str, StructurePairs]
    dmp: Pair
    psc: Pair
    whitelist_signer: Pair
    root_authority: Authority = attrs.field(repr=False)
    org_authority: Authority = attrs.field(repr=False)
    market_authority: Authority = attrs.field(repr=False)
    _stranger: list[Authority] = attrs.field(factory=list, repr=False)

    def stranger(self) -> Authority:
        """Return an intermediate with the very names of ours under a root nobody configured."""
        if not self._stranger:
            root = Authority.create(self.root_authority.certificate.subject)
            self._stranger.append(Authority.create(self.org_authority.certificate.subject, parent=root))
        return self._stranger[0]

    def write(
        self, name: str, issued: tuple[x509.Certificate, PrivateKey], authority: Authority | None = None
    ) -> Pair:
        """Write a pair as `<name>.pem` (with its chain) and `<name>.key`."""
        certificate, key = issued
        chain = (authority or self.org_authority).chain
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        pair.certificate.write_bytes(pem(certificate, *chain))
        write_private(pair.key, key_pem(key))
        return pair

    def issue_ssl_serv(
        self,
        fqdn: str,
        *,
        name: str | None = None,
        unit: str = "300000000000001",
        organisation: str = "CABINET D'IMAGERIE DE L'ÉTÉ",
        expired: bool = False,
        not_yet: bool = False,
        stranger: bool = False,
        usages: Sequence[x509.ObjectIdentifier] = (*_SERVER, *_CLIENT),
    ) -> Pair:
        """Issue an SSL_SERV certificate; options make it expired, not yet valid, or of a wrong CA."""
        authority = self.stranger() if stranger else self.org_authority
        begin, end = _dates(expired=expired, not_yet=not_yet)
        issued = authority.issue(
            organisation_name(fqdn, unit=unit, organisation=organisation),
            usages=usages,
            dns=[fqdn],
            not_before=begin,
            not_after=end,
        )
        return self.write(name or fqdn, issued, authority)

    def issue_org(
        self,
        structure: str,
        kind: str,
        *,
        organisation: str = "CABINET D'IMAGERIE DE L'ÉTÉ",
        common_name: str = "DRIMbox",
        name: str | None = None,
        expired: bool = False,
        stranger: bool = False,
    ) -> Pair:
        """Issue an ORG_AUTH_CLI (`kind` "auth") or ORG_SIGN ("sign") certificate, OU = `structure`."""
        authority = self.stranger() if stranger else self.org_authority
        begin, end = _dates(expired=expired, not_yet=False)
        issued = authority.issue(
            organisation_name(common_name, unit=structure, organisation=organisation),
            usages=_CLIENT if kind == "auth" else _MAIL,
            non_repudiation=kind == "sign",
            not_before=begin,
            not_after=end,
        )
        return self.write(name or f"org-{kind}-{structure}", issued, authority)

    def issue_whitelist_signer(
        self,
        name: str,
        *,
        common_name: str = WHITELIST_CN,
        unit: str = WHITELIST_OU,
        expired: bool = False,
        stranger: bool = False,
    ) -> Pair:
        """Issue a certificate to sign whitelists with (interfaces.md 8.3)."""
        authority = self.stranger() if stranger else self.org_authority
        begin, end = _dates(expired=expired, not_yet=False)
        issued = authority.issue(
            organisation_name(
                common_name,
                unit=unit,
                organisation="AGENCE DU NUMERIQUE EN SANTE",
                department="Paris (75)",
            ),
            usages=_MAIL,
            non_repudiation=True,
            not_before=begin,
            not_after=end,
        )
        return self.write(name, issued, authority)

    def revoke(self, *pairs: Pair, expired: bool = False) -> None:
        """Rewrite the CRL files so that they hold exactly `pairs`; `expired` makes them out of date."""
        serials = [pair.load().serial_number for pair in pairs]
        org = self.org_authority.crl(serials, expired=expired)
        root = self.root_authority.crl(expired=expired)
        encoding = serialization.Encoding.PEM
        self.crls.write_bytes(org.public_bytes(encoding) + root.public_bytes(encoding))
        self.crl_der.write_bytes(org.public_bytes(serialization.Encoding.DER))


def _dates(*, expired: bool, not_yet: bool) -> tuple[datetime | None, datetime | None]:
    now = datetime.now(UTC)
    if expired:
        return now - timedelta(days=400), now - timedelta(days=1)
    if not_yet:
        return now + timedelta(days=1), now + timedelta(days=400)
    return None, None


def make_pki(
    folder: Path,
    *,
    sites: Iterable[str] = DEFAULT_SITES,
    viewers: Iterable[str] = (),
    structures: Mapping[str, str] = DEFAULT_STRUCTURES,
    dmp_host: str = "dmp.example",
    psc_host: str = "psc.example",
    unit: str = "300000000000001",
    whitelist_cn: str = WHITELIST_CN,
    whitelist_ou: str = WHITELIST_OU,
) -> Pki:
    """Make a whole PKI in `folder` (created, mode 0700) and return where everything is.

    `sites` are WADO FQDNs, `viewers` viewer FQDNs, `structures` maps Struct_IdNat to a name. Server
    certificates of DMP and PSC also carry `localhost` and 127.0.0.1, so that a stock client finds them
    on loopback. Costs about 0.1 s for each RSA key: six, plus one a site and two a structure.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = Authority.create(authority_name("SIMULATEUR AC RACINE IGC-SANTE ELEMENTAIRE"))
    org = Authority.create(
        authority_name("SIMULATEUR AC IGC-SANTE ELEMENTAIRE ORGANISATIONS"),
        parent=root,
        crl_url="http://igc-sante.example/CRL/ACI-EL-ORG.crl",
    )
    market = Authority.create(authority_name("Autorité de marché (simulateur)", "Autorité de marché"))
    paths = {
        "roots": pem(root.certificate, org.certificate),
        "acr-el": pem(root.certificate),
        "aci-el-org": pem(org.certificate),
        "market-root": pem(market.certificate),
    }
    for name, data in paths.items():
        (folder / f"{name}.pem").write_bytes(data)
    pki = Pki(
        folder=folder,
        roots=folder / "roots.pem",
        root=folder / "acr-el.pem",
        intermediate=folder / "aci-el-org.pem",
        crls=folder / "crls.pem",
        crl_der=folder / "ACI-EL-ORG.crl",
        market_root=folder / "market-root.pem",
        sites={},
        viewers={},
        structures={},
        dmp=Pair(folder / "dmp.pem", folder / "dmp.key"),
        psc=Pair(folder / "psc.pem", folder / "psc.key"),
        whitelist_signer=Pair(folder / "whitelist-signer.pem", folder / "whitelist-signer.key"),
        root_authority=root,
        org_authority=org,
        market_authority=market,
    )
    for name, host in (("dmp", dmp_host), ("psc", psc_host)):
        subject = organisation_name(
            host, unit=WHITELIST_OU, organisation="SIMULATEUR", department="Paris (75)"
        )
        pki.write(
            name,
            org.issue(
                subject, usages=_SERVER, dns=[host, "localhost"], addresses=["127.0.0.1"], curve=True
            ),
        )
    pki.issue_whitelist_signer("whitelist-signer", common_name=whitelist_cn, unit=whitelist_ou)
    site_pairs = {fqdn: pki.issue_ssl_serv(fqdn, unit=unit) for fqdn in sites}
    viewer_pairs = {
        fqdn: pki.write(
            fqdn,
            market.issue(organisation_name(fqdn, unit=unit), usages=_SERVER, dns=[fqdn], curve=True),
            market,
        )
        for fqdn in viewers
    }
    structure_pairs = {
        identifier: StructurePairs(
            identifier,
            name,
            pki.issue_org(identifier, "auth", organisation=name),
            pki.issue_org(identifier, "sign", organisation=name),
        )
        for identifier, name in structures.items()
    }
    pki.revoke()
    return attrs.evolve(pki, sites=site_pairs, viewers=viewer_pairs, structures=structure_pairs)
