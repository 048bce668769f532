"""What the configuration says of trust: pairs are two PEM files or one PKCS#12 file, OCSP has a responder.

Works, like `sense`, on the tree that `shape` read, in which a value that was wrong is absent.
"""

from __future__ import annotations

from collections.abc import Iterator

from drimbox.config import Certificate
from drimbox.configfile.keys import RULES
from drimbox.configfile.report import Report, Tree, sites


def pairs(tree: Tree) -> Iterator[tuple[str, Tree, str | None]]:
    """Yield each pair of the file: its path, its tree, and the DNS name it must be for if there is one."""
    found: list[tuple[str, Tree | None, str | None]] = []
    for position, structure in enumerate(tree.get("structures", [])):
        for key in ("authentication", "signature"):
            found.append((f"structure[{position}].{key}", structure.get(key), None))
    for path, site in sites(tree):
        for role in ("wado", "viewer"):
            key = f"{role}_certificate"
            found.append((f"{path}.{key}", site.get(key), site.get(f"{role}_fqdn")))
    tls = tree.get("hl7", {}).get("tls") or {}
    found.append(("hl7.tls.certificate", tls.get("certificate"), None))
    found.append(("admin.certificate", tree.get("admin", {}).get("certificate"), None))
    found.append(("psc.certificate", tree.get("psc", {}).get("certificate"), None))
    atna = tree.get("audit", {}).get("atna") or {}
    found.append(("audit.atna.client", atna.get("client"), None))
    yield from ((path, pair, name) for path, pair, name in found if pair is not None)


def check(tree: Tree, report: Report) -> None:
    """Report every pair that is no pair, and a question that nobody could answer."""
    _ocsp(tree, report)
    _hl7(tree, report)
    _ris(tree, report)
    _admin(tree, report)
    for path, pair, _ in pairs(tree):
        # What is there, be it wrong; None is a key that is not written.
        written = {key for key in ("certificate", "key", "pkcs12") if pair.get(key, "wrong") is not None}
        if "pkcs12" in written and len(written) > 1:
            report.error(
                f"{path}.pkcs12",
                "les deux formes à la fois",
                "garder certificate et key (PEM), ou pkcs12 seul",
            )
        elif not written:
            report.error(
                path,
                "ni certificat ni clé",
                'écrire certificate = "….pem" et key = "….key", ou pkcs12 = "….p12"',
            )
        elif len(written) == 1 and "pkcs12" not in written:
            missing = "key" if "certificate" in written else "certificate"
            kind = RULES[Certificate][missing].kind
            report.error(f"{path}.{missing}", "clé obligatoire absente", f"l'écrire ici ; {kind}")


def _ocsp(tree: Tree, report: Report) -> None:
    """A question needs somebody to put it to."""
    trust = tree.get("trust", {})
    asked = trust.get("ocsp", "off") != "off"
    if asked and trust.get("ocsp_url", "") is None and trust.get("ocsp_hosts", "?") == ():
        report.error(
            "trust.ocsp",
            "OCSP est activé sans répondeur",
            "écrire ocsp_url, ou dans ocsp_hosts les machines que les certificats peuvent nommer",
        )


def _hl7(tree: Tree, report: Report) -> None:
    """Client certificates are verified against somebody."""
    tls = tree.get("hl7", {}).get("tls") or {}
    if "client_certificates" not in tls or "client_roots" not in tls:
        return
    asked, roots = tls["client_certificates"] != "none", tls["client_roots"] is not None
    if tls.get("crl_urls") and not asked:
        report.warn(
            "hl7.tls.crl_urls",
            "aucun certificat client n'est demandé, ces listes ne servent pas",
            'écrire client_certificates = "optional" ou "required", ou retirer crl_urls',
        )
    if asked and not roots:
        report.error(
            "hl7.tls.client_roots",
            "des certificats clients sont demandés, sans autorité pour les vérifier",
            "donner le fichier PEM des autorités qui les émettent",
        )
    if roots and not asked:
        report.warn(
            "hl7.tls.client_certificates",
            "« none » : aucun certificat client n'est demandé, client_roots ne sert pas",
            'écrire "optional" ou "required", ou retirer client_roots',
        )


def _ris(tree: Tree, report: Report) -> None:
    """A RIS is known by its certificate only where one is asked for, and others must not pass for it."""
    tls = tree.get("hl7", {}).get("tls", {})
    asked = "none" if tls is None else tls.get("client_certificates", "wrong")
    systems = tree.get("ris", [])
    tied = any(ris.get("certificate_names") for ris in systems)
    for position, ris in enumerate(systems):
        where = f"ris[{position}].certificate_names"
        if ris.get("certificate_names") and asked == "none":
            report.error(
                where,
                "aucun certificat client n'est demandé aux RIS : celui-ci ne serait jamais reconnu",
                'écrire [hl7.tls] client_certificates = "required", ou retirer cette clé',
            )
        elif tied and ris.get("certificate_names", "wrong") == ():
            report.warn(
                where,
                "vide, quand un autre RIS est tenu à son certificat : tout certificat de client_roots, ou "
                "aucun s'il n'est pas exigé, peut parler pour celui-ci",
                "écrire le nom que porte le certificat de ce RIS",
            )


def _admin(tree: Tree, report: Report) -> None:
    """Client certificates need TLS, somebody who signs them, and accounts that they stand for."""
    admin = tree.get("admin", {})
    for position, client in enumerate(admin.get("clients", ())):
        if not any(client.get(key, "wrong") for key in ("cn", "fingerprint")):
            report.error(
                f"admin.client[{position}]",
                "ni cn ni fingerprint : rien ne dit de quel certificat il s'agit",
                "écrire cn (et ou), ou fingerprint",
            )
    roots, clients = admin.get("client_roots", "wrong"), admin.get("clients", ())
    if roots is None and clients:
        report.error(
            "admin.client_roots",
            "des certificats clients ont un compte, sans autorité pour les vérifier",
            "donner le fichier PEM des autorités qui les émettent",
        )
    if roots is None and admin.get("client_crls") is not None:
        report.warn("admin.client_crls", "ne sert pas sans client_roots", "retirer cette clé")
    if roots in (None, "wrong"):
        return
    if admin.get("certificate", "wrong") is None:
        report.error(
            "admin.client_roots",
            "un certificat client ne se demande qu'en TLS",
            "écrire aussi certificate, le couple de cette écoute",
        )
    if not clients and "clients" in admin:
        report.error(
            "admin.client_roots",
            "aucun certificat client n'a de compte",
            "ajouter [[admin.client]], ou retirer client_roots",
        )
