"""The whitelist: what verifies, what never may, who is in it."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import attrs
import pytest
import xmlsec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from drimbox.errors import PeerNotListed
from drimbox.trust import xades
from drimbox.trust.whitelist import WhitelistHolder, WhitelistRefused, verify
from tests.trust.conftest import BOTH, NOW, Issued, crl, issue, name, rsa_key
from tests.trust.lists import (
    C14N,
    DS,
    ENVELOPED,
    EXC,
    FILTER2,
    NS,
    OLD_NS,
    XPATH,
    der,
    document,
    entry,
    sign,
)

CN, OU = "Liste Blanche DRIM-M PROD", "318751275100020"
DN = "CN=db1.349.example,OU=3490,O=CABINET DE L'ÉTÉ (75),ST=Paris (75),C=FR"
SIGNING = x509.KeyUsage(True, True, False, False, False, False, False, False, False)
wrapping = pytest.mark.threat("XML signature wrapping")


@attrs.frozen
class Lists:
    """The authorities of the list, its signer, and a good list."""

    roots: object
    root: Issued
    intermediate: Issued
    signer: Issued
    good: bytes

    def verify(self, data, **options):
        return verify(data, options.pop("roots", self.roots), CN, OU, options.pop("now", NOW), **options)

    def refused(self, data, why="", **options):
        with pytest.raises(WhitelistRefused) as caught:
            self.verify(data, **options)
        text = " ; ".join(caught.value.reasons)
        assert why in text, text
        return text


def signer_of(intermediate, cn=CN, ou=OU, **options):
    options = {"eku": (Eku.EMAIL_PROTECTION,), "key_usage": SIGNING, "key": rsa_key("signer")} | options
    return issue(name(cn, ou), by=intermediate, **options)


@pytest.fixture(scope="session")
def lists(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    root = issue(name("ACR-EL TEST"), ca=True, key=rsa_key("list-root"))
    intermediate = issue(name("ACI-EL-ORG TEST"), by=root, ca=True, key=rsa_key("list-intermediate"))
    signer = signer_of(intermediate)
    (folder / "roots.pem").write_bytes(root.pem() + intermediate.pem())
    good = sign(document(entry(DN), entry("CN=db1.350.example,OU=3500", "350")), signer)
    return Lists(folder / "roots.pem", root, intermediate, signer, good)


# --- what is right --------------------------------------------------------------------------------


@pytest.mark.requirement("DB.CS.151", "DB.SO.154")
def test_a_good_list_is_read(lists):
    whitelist = lists.verify(lists.good)
    assert whitelist.generated == datetime(2026, 1, 12, 4, tzinfo=UTC)
    assert [domain.identifier for domain in whitelist.domains] == ["349", "350"]
    assert whitelist.domains[0].name == "CABINET DE L'ÉTÉ"
    assert whitelist.signer == lists.signer.certificate
    assert whitelist.lists("db1.349.example", "3490")
    assert whitelist.lists("DB1.349.EXAMPLE", " 3490 ")


@pytest.mark.requirement("DB.SO.154")
def test_cn_and_ou_must_be_of_one_entry(lists):
    whitelist = lists.verify(lists.good)
    one, two = "db1.349.example", "db1.350.example"
    for cn, ou in ((one, "3500"), (two, "3490"), (one, ""), ("", ""), ("349", "3490")):
        assert not whitelist.lists(cn, ou)


@pytest.mark.peer("xmlsec1")
@pytest.mark.parametrize("selector", [FILTER2, ENVELOPED, XPATH], ids=["filter2", "enveloped", "xpath"])
def test_xmlsec1_agrees(lists, tmp_path, selector):
    if shutil.which("xmlsec1") is None:
        pytest.skip("no xmlsec1 command")
    data = sign(document(entry(DN)), lists.signer, selector=selector)
    assert lists.verify(data).lists("db1.349.example", "3490")
    trusted = tmp_path / "roots.pem"
    trusted.write_bytes(lists.root.pem())
    helper = tmp_path / "intermediate.pem"
    helper.write_bytes(lists.intermediate.certificate.public_bytes(xades.serialization.Encoding.PEM))

    def run(content):
        path = tmp_path / "list.xml"
        path.write_bytes(content)
        return subprocess.run(
            ["xmlsec1", "--verify", "--id-attr:Id", "SignedProperties", "--trusted-pem", str(trusted),
             "--untrusted-pem", str(helper), "--enabled-key-data", "x509,rsa", str(path)],
            capture_output=True, timeout=20, check=False,
        )  # fmt: skip

    accepted = run(data)
    assert accepted.returncode == 0, accepted.stderr
    altered = data.replace(b"OU=3490", b"OU=3491")
    assert run(altered).returncode != 0
    lists.refused(altered, "signature invalide")


@pytest.mark.parametrize("selector", [FILTER2, ENVELOPED, XPATH])
def test_all_layouts_of_the_published_lists_verify(lists, selector):
    for ns in (NS, OLD_NS):
        embedded = (lists.intermediate.certificate, lists.root.certificate)
        assert lists.verify(
            sign(document(entry(DN), ns=ns), lists.signer, selector=selector, embedded=embedded)
        )

    # Older: X509SubjectName, certificates in lines of 64, blanks in the XPath, other prefixes.
    def older(template):
        return re.sub(
            r"(<ds:X509Certificate>)", r"<ds:X509SubjectName>CN=x</ds:X509SubjectName>\1\n", template
        ).replace("/descendant::ds:Signature", "\n  /descendant::ds:Signature\n")

    assert lists.verify(sign(document(entry(DN)), lists.signer, selector=selector, edit=older))
    other_prefix = sign(
        document(entry(DN)),
        lists.signer,
        selector=selector,
        edit=lambda t: t.replace("ds:", "sig:").replace("xmlns:ds=", "xmlns:sig="),
    )
    assert lists.verify(other_prefix)


@pytest.mark.parametrize("ends", [384, 512])
def test_stronger_digests_verify(lists, ends):
    data = sign(document(entry(DN)), lists.signer, edit=lambda t: t.replace("rsa-sha256", f"rsa-sha{ends}"))
    assert lists.verify(data)


def test_unsigned_properties_and_comments_change_nothing(lists):
    before = b"</xades:SignedProperties>"
    stamped = lists.good.replace(before, before + b"<xades:UnsignedProperties/>")
    assert lists.verify(stamped)
    # Comments are not covered by the signature: they must not change what is read.
    commented = lists.good.replace(b"OU=3490", b"OU=34<!-- -->90")
    assert lists.verify(commented).lists("db1.349.example", "3490")
    assert not lists.verify(lists.good.replace(b"OU=3490,", b"OU=3490<!---->,")).lists(
        "db1.349.example", "349"
    )


def test_an_entry_that_cannot_be_read_lists_nobody_and_shuts_out_nobody(lists):
    odd = ["", "nonsense", "CN=a", "CN=a,CN=b,OU=1", "CN=a,OU=1<?pi?>"]
    data = sign(document(*(entry(dn) for dn in odd), entry(DN)), lists.signer)
    whitelist = lists.verify(data)
    assert [domain.identity is None for domain in whitelist.domains] == [True] * 5 + [False]
    assert whitelist.lists("db1.349.example", "3490")
    assert not whitelist.lists("a", "1")
    lists.refused(sign(document(*(entry(dn) for dn in odd)), lists.signer), "aucun domaine")


# --- attacks on the signature ---------------------------------------------------------------------


@pytest.mark.requirement("DB.CS.151")
def test_an_unsigned_list_is_refused(lists):
    lists.refused(document(entry(DN)).encode(), "non signée")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"OU=3490", b"OU=3491"),
        (b"<Identifiant>350", b"<Identifiant>351"),
        (b"2026-01-12T04:00:00Z", b"2027-01-12T04:00:00Z"),
        (b"2026-01-12T04:00:10Z", b"2026-01-12T04:00:11Z"),
        (b"</ListeDomaines>", entry("CN=evil,OU=1").encode() + b"</ListeDomaines>"),
        (b"\n  <DateDeGeneration>", b"\n <DateDeGeneration>"),
        (b"</ds:Signature>", b"</ds:Signature>x"),
        (b' versionFormat="1.0.0"', b""),
    ],
)
def test_an_altered_list_is_refused(lists, old, new):
    assert old in lists.good
    lists.refused(lists.good.replace(old, new), "signature invalide")


def _element(data, tag):
    root = etree.fromstring(data)
    return root, next(root.iter(f"{{{DS}}}{tag}"))


EVIL = entry("CN=evil.example,OU=666")


def _wrap(lists, build):
    """Build a wrapped document from the evil list, the good list without signature, and the signature."""
    good = etree.fromstring(lists.good)
    signature = good[-1]
    good.remove(signature)
    evil = etree.fromstring(document(EVIL).encode())
    return etree.tostring(build(evil, good, signature), xml_declaration=True, encoding="UTF-8")


def _object(signature, child):
    box = etree.SubElement(signature, f"{{{DS}}}Object")
    box.append(child)
    return signature


def _into(parent, *children):
    for child in children:
        parent.append(child)
    return parent


def _properties_outside(evil, good, signature):
    properties = next(signature.iter("{http://uri.etsi.org/01903/v1.3.2#}SignedProperties"))
    properties.getparent().remove(properties)
    return _into(good, properties, signature)


WRAPPINGS = {
    "the signature moved to an evil list": lambda e, g, s: _into(e, s),
    "the good list in an Object of the signature": lambda e, g, s: _into(e, _object(s, g)),
    "the good list beside, signature last": lambda e, g, s: _into(e, g, s),
    "the good signed list inside the evil one": lambda e, g, s: _into(e, _into(g, s)),
    "the evil list inside the good one, signature last": lambda e, g, s: _into(g, e, s),
    "the evil list in an Object": lambda e, g, s: _into(g, _object(s, e)),
    "evil domains in the signature's Object": lambda e, g, s: _into(g, _object(s, e[1])),
    "the signature first": lambda e, g, s: (g.insert(0, s), g)[1],
    "the signature inside ListeDomaines": lambda e, g, s: (g[1].append(s), g)[1],
    "an element after the signature": lambda e, g, s: _into(g, s, e[1]),
    "the signature twice": lambda e, g, s: _into(g, etree.fromstring(etree.tostring(s)), s),
    "a Signature of no namespace beside": lambda e, g, s: _into(g, etree.Element("Signature"), s),
    "an evil list in a second, nested Signature": lambda e, g, s: _into(
        g, _object(s, _into(etree.Element(f"{{{DS}}}Signature"), e))
    ),
    "the properties outside the signature": _properties_outside,
}


@wrapping
@pytest.mark.parametrize("how", WRAPPINGS)
def test_signature_wrapping(lists, how):
    lists.refused(_wrap(lists, WRAPPINGS[how]))


@wrapping
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("the signature twice", "plusieurs signatures"),
        ("a Signature of no namespace beside", "plusieurs signatures"),
        ("the signature first", "dernier élément"),
        ("the signature inside ListeDomaines", "dernier élément"),
        ("an element after the signature", "dernier élément"),
    ],
)
def test_the_place_of_the_signature_is_checked_before_its_value(lists, how, why):
    # Its transform takes every signature away, so some of these would verify.
    lists.refused(_wrap(lists, WRAPPINGS[how]), why)


@wrapping
def test_hidden_domains_the_transform_takes_away_are_never_read(lists):
    # filter2 subtracts every Signature: what hides inside one is unsigned. Even if such a document
    # passed, the list is read from the covered bytes alone.
    box = f"<ds:Object><ListeDomaines xmlns='{NS}'>{EVIL}</ListeDomaines></ds:Object>"
    lists.refused(lists.good.replace(b"</ds:Signature>", box.encode() + b"</ds:Signature>"), "structure")


REFERENCE = 'URI=""'
EDITS = {
    "reference to an Id": ("", REFERENCE, 'URI="#list"'),
    "reference without URI": ("", f" {REFERENCE}", ""),
    "reference to a file": ("", REFERENCE, 'URI="file:///etc/passwd"'),
    "reference by XPointer": ("", REFERENCE, 'URI="#xpointer(/)"'),
    "no transform": ("", FILTER2 + C14N, ""),
    "no removal of the signature": ("", FILTER2, ""),
    "no canonicalisation": ("transformation", FILTER2 + C14N, FILTER2),
    "base64 transform": ("transformation", FILTER2, f'<ds:Transform Algorithm="{DS}base64"/>'),
    "XSLT transform": (
        "transformation",
        FILTER2,
        '<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xslt-19991116"/>',
    ),
    "filter2 intersect": ("transformation", 'Filter="subtract"', 'Filter="intersect"'),
    "filter2 union": ("transformation", 'Filter="subtract"', 'Filter="union"'),
    "filter2 that takes domains away": (
        "transformation",
        "/descendant::ds:Signature",
        "/descendant::ds:Signature | //*[local-name()='Domaine']",
    ),
    "filter2 of a prefix of another namespace": (
        "transformation",
        'Filter="subtract">/descendant::ds:Signature',
        f'Filter="subtract" xmlns:x="{NS}">/descendant::x:Signature',
    ),
    "two filters": ("", FILTER2, FILTER2 + FILTER2),
    "inclusive canonicalisation": ("", f'Algorithm="{EXC}"/><ds:SignatureMethod', 'Algorithm="http://www.w3.org/TR/2001/REC-xml-c14n-20010315"/><ds:SignatureMethod'),
    "canonicalisation with comments": ("", C14N, f'<ds:Transform Algorithm="{EXC}WithComments"/>'),
    "inclusive prefixes": (
        "paramètre",
        C14N,
        f'<ds:Transform Algorithm="{EXC}"><InclusiveNamespaces xmlns="{EXC}" PrefixList="ds"/>'
        "</ds:Transform>",
    ),
    "sha1 digest": ("empreinte", "http://www.w3.org/2001/04/xmlenc#sha256", f"{DS}sha1"),
    "rsa-sha1": ("algorithme", "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256", f"{DS}rsa-sha1"),
    "a third reference": (
        "structure",
        '<ds:Reference Id="r-id-1"',
        f'<ds:Reference URI=""><ds:Transforms>{ENVELOPED}{C14N}</ds:Transforms><ds:DigestMethod '
        'Algorithm="http://www.w3.org/2001/04/xmlenc#sha256"/><ds:DigestValue/></ds:Reference>'
        '<ds:Reference Id="r-id-1"',
    ),
    "properties reference of another type": ("", "01903#SignedProperties", "01903#Other"),
    "properties reference to the signature value": ("", 'URI="#xades-id-1"', 'URI="#value-id-1"'),
    "target of another signature": ("désigne", 'Target="#id-1"', 'Target="#id-2"'),
    "two elements of one Id": ("double", 'Id="value-id-1"', 'Id="r-id-1"'),
    "an Id in other letters": ("double", 'Id="value-id-1"', 'xml:id="id-1"'),
    "KeyValue beside the certificate": (
        "structure",
        "<ds:KeyInfo>",
        "<ds:KeyInfo><ds:KeyName>x</ds:KeyName>",
    ),
    "no SigningCertificateV2": ("SigningCertificateV2", "SigningCertificateV2", "SigningCertificate"),
    "a comment in the signature": ("commentaire", "</ds:SignedInfo>", "</ds:SignedInfo><!-- -->"),
    "sha1 certificate digest": ("empreinte", "http://www.w3.org/2001/04/xmlenc#sha512", f"{DS}sha1"),
}  # fmt: skip


@wrapping
@pytest.mark.parametrize("how", EDITS)
def test_a_signature_of_another_form_is_refused_though_its_own_signer_made_it(lists, how):
    why, old, new = EDITS[how]
    changed = []

    def edit(template):
        changed.append(old in template)
        return template.replace(old, new)

    try:
        data = sign(
            document(entry(DN)).replace("<ListeDomaines>", '<ListeDomaines Id="list">'),
            lists.signer,
            edit=edit,
        )
    except xmlsec.Error:
        # xmlsec itself will not make it; spoil a good one instead.
        data = sign(document(entry(DN)), lists.signer).decode().replace(old, new).encode()
    assert changed == [True]
    lists.refused(data, why)


@wrapping
def test_hmac_with_the_public_key_is_refused(lists):
    public = der(lists.signer)
    data = sign(
        document(EVIL),
        lists.signer,
        edit=lambda t: t.replace("rsa-sha256", "hmac-sha256"),
        key=xmlsec.Key.from_binary_data(xmlsec.constants.KeyDataHmac, public),
    )
    lists.refused(data, "algorithme de signature")


@pytest.mark.requirement("DB.CS.151")
def test_a_list_signed_by_somebody_else_is_refused(lists):
    other_ca = issue(name("ACI-EL-ORG TEST"), ca=True, key=rsa_key("other-ca"))
    forged = signer_of(other_ca, key=rsa_key("forger"))
    text = lists.refused(sign(document(EVIL), forged, embedded=(other_ca.certificate,)), "refusé")
    assert "CN" not in text
    # The real certificate embedded first, the forger's key used.
    swapped = sign(document(EVIL), forged, embedded=(lists.signer.certificate,))
    lists.refused(swapped)
    claimed = sign(document(EVIL), forged, digest=hashlib.sha512(der(lists.signer)).digest())
    lists.refused(claimed, "désigne")
    both = sign(
        document(EVIL),
        forged,
        embedded=(lists.signer.certificate,),
        digest=hashlib.sha512(der(lists.signer)).digest(),
    )
    lists.refused(both, "signature invalide")


@pytest.mark.requirement("DB.CS.151")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"cn": "Liste Blanche DRIM-M"}, "CN"),
        ({"ou": "318751275100021"}, "CN"),
        ({"start": NOW - timedelta(9), "end": NOW - timedelta(1)}, "dates"),
        ({"start": NOW + timedelta(1)}, "dates"),
        (
            {"key_usage": x509.KeyUsage(False, False, True, False, False, False, False, False, False)},
            "signer",
        ),
        ({"ca": True}, "signer"),
    ],
)
def test_a_signer_that_is_not_right_is_refused(lists, options, why):
    lists.refused(sign(document(entry(DN)), signer_of(lists.intermediate, **options)), why)


def test_all_faults_of_the_signer_are_told_together(lists):
    options = {"cn": "x", "start": NOW - timedelta(9), "end": NOW - timedelta(1)}
    with pytest.raises(WhitelistRefused) as caught:
        lists.verify(sign(document(entry(DN)), signer_of(lists.intermediate, **options)))
    assert len(caught.value.reasons) >= 2


def test_weak_keys_and_chains_are_refused(lists):
    weak = signer_of(lists.intermediate, key=rsa.generate_private_key(65537, 1024))
    lists.refused(sign(document(entry(DN)), weak), "2048")
    sha1 = signer_of(lists.intermediate, hash_algorithm=hashes.SHA224())
    lists.refused(sign(document(entry(DN)), sha1), "empreinte")


def test_an_embedded_authority_is_no_anchor(lists, tmp_path):
    embedded = (lists.intermediate.certificate, lists.root.certificate)
    data = sign(document(entry(DN)), lists.signer, embedded=embedded)
    only_root = tmp_path / "root.pem"
    only_root.write_bytes(lists.root.pem())
    assert lists.verify(data, roots=only_root)
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(issue(name("FOREIGN"), ca=True).pem())
    lists.refused(data, "refusé", roots=foreign)
    # An intermediate alone ends no chain, and the older lists embed none.
    lists.refused(lists.good, "refusé", roots=only_root)
    lists.refused(data, "lecture impossible", roots=tmp_path / "missing.pem")


@pytest.mark.requirement("DB.CS.151")
def test_a_revoked_signer_is_refused(lists):
    lists.verify(lists.good, crl=crl(lists.intermediate))
    lists.refused(lists.good, "revoked", crl=crl(lists.intermediate, lists.signer.certificate))
    lists.refused(lists.good, "refusé", crl=crl(lists.root))


def test_dates_are_judged_now_whatever_the_list_says(lists):
    lists.refused(lists.good, "dates", now=NOW + timedelta(days=31))
    lists.refused(lists.good, "dates", now=NOW - timedelta(days=2))
    # DateDeGeneration before notBefore is no fault (interfaces.md 8.3).
    young = signer_of(lists.intermediate, start=NOW - timedelta(minutes=1))
    assert lists.verify(sign(document(entry(DN)), young)).generated < young.certificate.not_valid_before_utc


@pytest.mark.threat("XXE, billion laughs, DTD")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<a",
        b"\x00" * 100,
        b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
        b"<a>" * 100 + b"</a>" * 100,
        b"<a/>" + b" " * xades.MAX_BYTES,
    ],
)
def test_what_is_no_acceptable_xml_is_refused(lists, data):
    lists.refused(data)


def test_a_signed_document_that_is_no_list_is_refused(lists):
    for old in ("ListeDomaines", "ListeBlancheDRIM-M"):
        data = sign(document(entry(DN)).replace(old, "Autre"), lists.signer)
        lists.refused(data, "pas une liste blanche")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_no_single_byte_can_change_without_refusal_or_without_effect(lists, data):
    position = data.draw(st.integers(0, len(lists.good) - 1))
    value = data.draw(st.integers(0, 255))
    altered = lists.good[:position] + bytes([value]) + lists.good[position + 1 :]
    try:
        whitelist = lists.verify(altered)
    except WhitelistRefused:
        return
    assert whitelist.domains == lists.verify(lists.good).domains


# --- the holder -----------------------------------------------------------------------------------


@pytest.fixture
def holder(lists, world, tmp_path):
    trust = attrs.evolve(world.trust, whitelist=tmp_path / "list.xml", whitelist_roots=lists.roots)
    trust.whitelist.write_bytes(lists.good)
    return WhitelistHolder(trust, world.sites, lambda: NOW)


@pytest.mark.requirement("DB.SO.154", "DB.CS.148")
def test_the_holder_answers_for_peers(holder, lists):
    holder.start()
    listed = issue(name("db1.350.example", "3500"), eku=BOTH).certificate
    stranger = issue(name("db1.350.example", "3501"), eku=BOTH).certificate
    assert holder.lists(listed)
    holder.check(listed)
    with pytest.raises(PeerNotListed) as caught:
        holder.check(stranger)
    assert (caught.value.code, caught.value.status) == ("E1102", 401)
    with pytest.raises(PeerNotListed):
        holder.check(issue(name("db1.350.example")).certificate)
    assert holder._settings.whitelist.read_bytes() == lists.good


@pytest.mark.requirement("DB.CS.164")
def test_a_site_that_is_not_in_the_list_serves_nobody(holder, lists, world):
    holder.start()
    # The good list has db1.349.example with the OU of its certificate, not db2.
    assert holder.serves(world.sites[0])
    assert not holder.serves(world.sites[1])
    assert holder.unlisted == (world.sites[1],)
    holder._settings.whitelist.write_bytes(
        sign(document(entry("CN=db2.349.example,OU=3490")), lists.signer)
    )
    holder.load()
    assert [holder.serves(site) for site in world.sites] == [False, True]


def test_a_bad_file_never_replaces_a_good_list(holder, lists):
    holder.start()
    good = holder.current
    path = holder._settings.whitelist
    for bad in (
        b"",
        lists.good[:-100],
        lists.good.replace(b"3490", b"3491"),
        lists.good + b" " * xades.MAX_BYTES,
    ):
        path.write_bytes(bad)
        with pytest.raises(WhitelistRefused):
            holder.load()
        assert holder.current is good
        assert holder.reasons
    path.unlink()
    with pytest.raises(WhitelistRefused, match="lecture impossible"):
        holder.load()
    path.write_bytes(lists.good)
    assert holder.load() is holder.current is not good
    assert holder.reasons == ()


def test_without_a_good_list_nobody_starts_unless_told_so(holder, world):
    holder._settings.whitelist.write_bytes(b"")
    with pytest.raises(WhitelistRefused):
        holder.start()
    told = WhitelistHolder(
        attrs.evolve(holder._settings, start_without_whitelist=True), world.sites, lambda: NOW
    )
    told.start()
    assert told.current is None
    assert told.reasons
    assert not told.lists(world.clients["good"].certificate)
    assert not any(told.serves(site) for site in world.sites)
    with pytest.raises(PeerNotListed):
        told.check(world.clients["good"].certificate)


def test_own_certificate_unreadable_is_own_site_off(lists, world, tmp_path):
    missing = attrs.evolve(world.sites[0].wado_certificate, certificate=tmp_path / "gone.pem")
    sites = (attrs.evolve(world.sites[0], wado_certificate=missing),)
    trust = attrs.evolve(world.trust, whitelist=tmp_path / "list.xml", whitelist_roots=lists.roots)
    trust.whitelist.write_bytes(lists.good)
    holder = WhitelistHolder(trust, sites, lambda: NOW)
    holder.start()
    assert not holder.serves(sites[0])
