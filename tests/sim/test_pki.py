"""The test PKI judged by openssl: good certificates pass, each bad one fails for its own reason."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest
from cryptography import x509

from drimbox.sim.pki import Pair, Pki

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

SITE = "db1.349.example"


def verify(pki: Pki, pair: Pair, *options: str) -> tuple[bool, str]:
    done = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-CAfile", str(pki.root)),
            *("-untrusted", str(pki.intermediate), "-CRLfile", str(pki.crls), "-crl_check_all"),
            *options,
            str(pair.certificate),
        ],
        capture_output=True,
        text=True,
        timeout=20,
    )
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.peer("openssl")
@pytest.mark.requirement("DB.SO.90", "DB.CO.98")
def test_ssl_serv_certificate_serves_and_calls(sim_pki: Pki) -> None:
    pair = sim_pki.sites[SITE]
    for purpose in ("sslserver", "sslclient"):
        ok, text = verify(sim_pki, pair, "-purpose", purpose, "-verify_hostname", SITE)
        assert ok, text
    assert pair.load().subject.rfc4514_string() == (
        "CN=db1.349.example,OU=300000000000001,O=CABINET D'IMAGERIE DE L'ÉTÉ,ST=Hérault (34),C=FR"
    )


@pytest.mark.peer("openssl")
def test_organisation_pairs_have_the_usage_of_their_product(sim_pki: Pki) -> None:
    (pairs,) = sim_pki.structures.values()
    assert verify(sim_pki, pairs.authentication, "-purpose", "sslclient")[0]
    assert not verify(sim_pki, pairs.authentication, "-purpose", "sslserver")[0]
    assert verify(sim_pki, pairs.signature, "-purpose", "smimesign")[0]
    assert not verify(sim_pki, pairs.signature, "-purpose", "sslclient")[0]
    assert not verify(sim_pki, sim_pki.whitelist_signer, "-purpose", "sslclient")[0]
    unit = pairs.signature.load().subject.get_attributes_for_oid(x509.NameOID.ORGANIZATIONAL_UNIT_NAME)
    assert unit[0].value == pairs.id


@pytest.mark.peer("openssl")
def test_bad_certificates_fail_for_their_own_reason(sim_pki: Pki) -> None:
    bad = {
        "certificate has expired": sim_pki.issue_ssl_serv(SITE, name="bad-expired", expired=True),
        "certificate is not yet valid": sim_pki.issue_ssl_serv(SITE, name="bad-early", not_yet=True),
        "authority and subject key identifier mismatch|unable to get local issuer|signature failure": (
            sim_pki.issue_ssl_serv(SITE, name="bad-stranger", stranger=True)
        ),
    }
    for reasons, pair in bad.items():
        ok, text = verify(sim_pki, pair)
        assert not ok
        assert any(reason in text for reason in reasons.split("|")), text


@pytest.mark.peer("openssl")
def test_revocation_and_a_stale_list(sim_pki: Pki) -> None:
    pair = sim_pki.sites[SITE]
    try:
        sim_pki.revoke(pair)
        ok, text = verify(sim_pki, pair)
        assert not ok
        assert "certificate revoked" in text
        sim_pki.revoke(expired=True)
        assert "CRL has expired" in verify(sim_pki, pair)[1]
    finally:
        sim_pki.revoke()
    assert verify(sim_pki, pair)[0]
    assert x509.load_der_x509_crl(sim_pki.crl_der.read_bytes()).next_update_utc is not None


@pytest.mark.peer("openssl")
def test_the_viewer_certificate_is_of_the_market(sim_pki: Pki) -> None:
    pair = sim_pki.viewers["vi1.349.example"]
    assert not verify(sim_pki, pair)[0]
    done = subprocess.run(
        ["openssl", "verify", "-CAfile", str(sim_pki.market_root), str(pair.certificate)],
        capture_output=True,
        timeout=20,
    )
    assert done.returncode == 0


def test_private_keys_are_for_their_owner_alone(sim_pki: Pki) -> None:
    keys = list(sim_pki.folder.glob("*.key"))
    assert keys
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert "PrivateKey" not in repr(sim_pki)
