"""The signed list judged by the xmlsec1 command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from drimbox.sim.pki import Pki
from drimbox.sim.whitelist import Fault, ListedDomain, Transform, bad_whitelists, main, make_whitelist
from drimbox.xml import safe_parse

pytestmark = pytest.mark.skipif(shutil.which("xmlsec1") is None, reason="xmlsec1 is not installed")

XADES = "http://uri.etsi.org/01903/v1.3.2#"


@pytest.fixture
def domains(sim_pki: Pki) -> list[ListedDomain]:
    return [
        ListedDomain.for_certificate("349", sim_pki.sites["db1.349.example"], vi="vi1.349.example"),
        ListedDomain("350", "db1.350.example", "", "RÉSEAU D'ÎLE", "CN=db1.350.example,OU=2,C=FR"),
    ]


def accepted(pki: Pki, data: bytes, folder: Path) -> bool:
    """Say whether xmlsec1 alone accepts the signature (it knows no whitelist rule)."""
    path = folder / "list.xml"
    path.write_bytes(data)
    ids = ("ListeBlancheDRIM-M", "Domaine")
    done = subprocess.run(
        [
            *("xmlsec1", "--verify", "--trusted-pem", str(pki.root)),
            *("--untrusted-pem", str(pki.intermediate)),
            *("--id-attr:Id", f"{XADES}:SignedProperties"),
            *(part for name in ids for part in ("--id-attr:Id", name)),
            *("--id-attr:Id", "https://github.com/ansforge/DRIM-M_DATA:Domaine"),
            *("--id-attr:Id", "https://github.com/ansforge/DRIM-M_DATA:ListeBlancheDRIM-M"),
            str(path),
        ],
        capture_output=True,
        timeout=20,
    )
    return done.returncode == 0


@pytest.mark.peer("xmlsec1")
@pytest.mark.parametrize("transform", list(Transform))
def test_a_good_list_verifies(
    sim_pki: Pki, domains: list[ListedDomain], transform: Transform, tmp_path: Path
) -> None:
    data = make_whitelist(domains, sim_pki.whitelist_signer, transform=transform)
    assert accepted(sim_pki, data, tmp_path)
    assert not accepted(sim_pki, data.replace("RÉSEAU".encode(), b"RESEAU"), tmp_path)


#: Faults that mathematics does not see: the verifier's own rules must.
ONLY_RULES = {
    "wrapped",
    "not-last",
    "two-signatures",
    "other-transform",
    "subtracts-domains",
    "partial",
    "no-properties",
    "sha1",
    "other-certificate-digest",
    "wrong-cn",
    "wrong-ou",
}


@pytest.mark.peer("xmlsec1")
@pytest.mark.threat("XML signature wrapping")
def test_each_bad_list_is_bad_in_one_way_only(
    sim_pki: Pki, domains: list[ListedDomain], tmp_path: Path
) -> None:
    lists = bad_whitelists(sim_pki, domains)
    assert {fault.value for fault in Fault} < set(lists)
    verdicts = {name: accepted(sim_pki, data, tmp_path) for name, data in lists.items()}
    assert {name for name, ok in verdicts.items() if ok} == ONLY_RULES


def test_document_is_what_the_publisher_writes(sim_pki: Pki, domains: list[ListedDomain]) -> None:
    root = safe_parse(make_whitelist(domains, sim_pki.whitelist_signer))
    ns = {"l": "https://github.com/ansforge/DRIM-M_DATA", "ds": "http://www.w3.org/2000/09/xmldsig#"}
    assert root[-1].tag == "{http://www.w3.org/2000/09/xmldsig#}Signature"
    fields = [child.tag.split("}")[1] for child in root.find(".//l:Domaine", ns)]
    assert fields == [
        *("Identifiant", "db", "vi", "Denomination", "DNCertificatOperateur", "SupportContact", "DateMAJ")
    ]
    assert len(root.findall(".//ds:X509Certificate", ns)) == 2


def test_command_writes_a_list(sim_pki: Pki, tmp_path: Path) -> None:
    signer, site = sim_pki.whitelist_signer, sim_pki.sites["db1.349.example"]
    out = tmp_path / "liste.xml"
    main(
        [
            *("--certificate", str(signer.certificate), "--key", str(signer.key)),
            *("--site", str(site.certificate), str(out)),
        ]
    )
    assert accepted(sim_pki, out.read_bytes(), tmp_path)
    assert b"<db>db1.349.example</db>" in out.read_bytes()
