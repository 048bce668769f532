"""What an authority's own key signs and is not the list: whoever stands on the way may give it to us."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from drimbox.limits import Why
from drimbox.trust.contexts import ServerContexts
from drimbox.trust.revocation import CrlRefused, verified_crl
from tests.trust.conftest import NOW, issue, name
from tests.trust.test_contexts import ask, both_versions, serving
from tests.trust.test_listkeeper import done
from tests.trust.test_revocation import DAY, URL, Scene, der, made, scene

__all__ = ["scene"]

pytestmark = pytest.mark.requirement("DB.SO.111")


def extended(issuer: Any, *extensions: tuple[x509.ExtensionType, bool], since: datetime = NOW) -> bytes:
    """A list of nobody that is newer than those of the scene, with extensions."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(since)
        .next_update(since + 7 * DAY)
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return der(builder.sign(issuer.key, hashes.SHA256()))


def part(**values: Any) -> x509.IssuingDistributionPoint:
    """The scope of a list."""
    flags = dict.fromkeys(
        (
            "only_contains_user_certs",
            "only_contains_ca_certs",
            "indirect_crl",
            "only_contains_attribute_certs",
        ),
        False,
    )
    given: Any = {
        "full_name": None, "relative_name": None, "only_some_reasons": None, **flags, **values
    }  # fmt: skip
    return x509.IssuingDistributionPoint(**given)


PARTIAL: dict[str, tuple[x509.ExtensionType, bool]] = {
    "delta": (x509.DeltaCRLIndicator(5), True),
    "delta that is not critical": (x509.DeltaCRLIndicator(5), False),
    "of others": (part(indirect_crl=True), True),
    "for some reasons": (part(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})), True),
    "of attributes": (part(only_contains_attribute_certs=True), True),
    "critical, and unknown": (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True),
}


@pytest.mark.threat("forged lists and OCSP answers")
@pytest.mark.parametrize("which", PARTIAL)
def test_a_list_that_leaves_revocations_out_is_none(scene: Scene, world: Any, which: str) -> None:
    """The authority signed it: whoever stands between us can give it in the place of the whole one."""
    before = scene.keeper.crls
    scene.answers[URL] = extended(world.intermediate, PARTIAL[which])
    done(scene.keeper.refresh())
    assert scene.keeper.crls == before
    assert scene.keeper.facts()[0]["problem"]


def test_a_list_with_a_number_and_the_key_of_its_authority_is_taken(scene: Scene, world: Any) -> None:
    key = x509.AuthorityKeyIdentifier.from_issuer_public_key(world.intermediate.key.public_key())
    scene.answers[URL] = extended(world.intermediate, (x509.CRLNumber(7), False), (key, False))
    done(scene.keeper.refresh())
    assert scene.keeper.facts()[0]["problem"] is None
    assert der(scene.keeper.crls[0]) == scene.answers[URL]


@pytest.mark.threat("old lists played again")
@pytest.mark.parametrize("swap", ["another authority", "another scope"])
def test_a_list_in_force_gives_way_to_none_about_others(scene: Scene, world: Any, swap: str) -> None:
    gone = world.clients["good"].certificate
    scene.answers[URL] = der(made(world.intermediate, gone, since=NOW - timedelta(minutes=30)))
    done(scene.keeper.refresh())
    assert scene.keeper.revokes(gone)
    if swap == "another authority":
        scene.answers[URL] = der(made(world.root, since=NOW))
    else:
        scene.answers[URL] = extended(world.intermediate, (part(only_contains_ca_certs=True), True))
    done(scene.keeper.refresh())
    assert scene.keeper.revokes(gone)
    assert scene.keeper.current(world.intermediate.certificate.subject) is not None
    assert "portée" in str(scene.keeper.facts()[0]["problem"])
    # An authority that is succeeded by another: once its own list has run out.
    scene.now = NOW + 8 * DAY
    scene.answers[URL] = der(made(world.root, since=scene.now))
    done(scene.keeper.refresh())
    assert scene.keeper.facts()[0]["problem"] is None


@pytest.mark.threat("forged lists and OCSP answers")
def test_an_authority_that_is_not_for_lists_signs_none(world: Any) -> None:
    others = "digital_signature content_commitment key_encipherment data_encipherment key_agreement"
    usage = dict.fromkeys([*others.split(), "encipher_only", "decipher_only"], False)
    for may, subject in ((True, "for lists"), (False, "for certificates")):
        authority = issue(
            name(subject), ca=True, key_usage=x509.KeyUsage(key_cert_sign=True, crl_sign=may, **usage)
        )
        if may:
            assert verified_crl(der(made(authority)), [authority.certificate], NOW) is not None
        else:
            with pytest.raises(CrlRefused, match="aucune de nos autorités"):
                verified_crl(der(made(authority)), [authority.certificate], NOW)


@pytest.mark.threat("forged lists and OCSP answers")
def test_a_date_that_is_none_makes_no_list(world: Any) -> None:
    """A leap second, a 31st of June, a year that has no 29th of February."""
    good = der(made(world.intermediate, since=datetime(2027, 6, 15, 12, 30, 45, tzinfo=UTC)))
    assert good.count(b"270615123045Z") == 1
    for bad in (b"270615123060Z", b"270631123045Z", b"270229123045Z", b"270615243045Z"):
        with pytest.raises(CrlRefused, match="illisible"):
            verified_crl(
                good.replace(b"270615123045Z", bad), [world.intermediate.certificate], NOW + 999 * DAY
            )
    leap = der(made(world.intermediate, since=datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC)))
    taken = verified_crl(leap, [world.intermediate.certificate], NOW + 999 * DAY)
    assert taken.last_update_utc.day == 29


def test_what_revokes_says_is_of_the_lists_held_now(scene: Scene, world: Any) -> None:
    good = world.clients["good"].certificate
    assert not scene.keeper.revokes(good)
    scene.answers[URL] = der(made(world.intermediate, good, since=NOW))
    done(scene.keeper.refresh())
    assert scene.keeper.revokes(good)
    # One that has run out still tells of whom it had.
    scene.now = NOW + 30 * DAY
    assert scene.keeper.revokes(good)
    assert not scene.keeper.revokes(world.clients["expired"].certificate)


@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@both_versions
@pytest_twisted.ensureDeferred
async def test_a_revoked_authority_is_refused_though_others_have_no_list(
    world: Any, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """OpenSSL would look up no authority at all then."""
    roots = tmp_path / "roots.pem"
    roots.write_bytes(world.root.pem() + world.market.pem())
    told: list[Why] = []
    contexts = ServerContexts(
        world.sites,
        attrs.evolve(world.trust, consumer_roots=roots, crl_urls=(URL,)),
        on_refused=lambda: None,
        told=lambda address, fqdn, why: told.append(why),
    )
    with serving(contexts) as port:
        for lists, enters in (
            ([made(world.intermediate)], True),
            ([made(world.intermediate), made(world.root)], True),
            ([made(world.intermediate), made(world.root, world.intermediate.certificate)], False),
        ):
            contexts.reload(lists)
            answer = await ask(port, "db1.349.example", world.client("good"), version)
            assert bool(answer.data) is enters, told
    assert told == [Why.REVOKED]
