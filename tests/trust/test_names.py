"""Distinguished names: what compares equal, what does not, what is nobody's."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from drimbox.trust.names import (
    Identity,
    NameUnreadable,
    identity,
    identity_of,
    identity_of_text,
    names_borne,
    parse_name,
)
from tests.trust.conftest import issue, name

AGENCY = "CN=db1.349.example,OU=300000000000001,O=CABINET D'IMAGERIE DE L'ÉTÉ (75),ST=Paris (75),C=FR"


def test_the_form_of_the_agency_is_read():
    assert parse_name(AGENCY) == [
        ("CN", "db1.349.example"),
        ("OU", "300000000000001"),
        ("O", "CABINET D'IMAGERIE DE L'ÉTÉ (75)"),
        ("ST", "Paris (75)"),
        ("C", "FR"),
    ]


@pytest.mark.requirement("DB.SO.154")
@pytest.mark.parametrize(
    "text",
    [
        AGENCY,
        "C=FR,ST=Paris (75),O=X,OU=300000000000001,CN=db1.349.example",
        "cn = db1.349.example , ou = 300000000000001 , O = X",
        "CN=DB1.349.EXAMPLE, OU=300000000000001",
        "CN=db1.349.example+OU=300000000000001,O=X",
        "CN=db1.349.example;OU=300000000000001",
        '2.5.4.3="db1.349.example",OID.2.5.4.11=300000000000001',
        r"CN=db1\2e349.example,OU=\33\30\30000000000001",
        "O=A\\,CN\\=evil\\,OU\\=0,CN=db1.349.example,OU=300000000000001",
        'O="A,CN=evil,OU=0",CN=db1.349.example,OU=300000000000001',
        "EMAILADDRESS=a@b,1.2.3.4=x,CN=db1.349.example,OU=300000000000001",
    ],
)
def test_order_escapes_case_and_blanks_mean_nothing(text):
    assert identity_of_text(text) == Identity("db1.349.example", "300000000000001")


@pytest.mark.parametrize(
    "text",
    [
        "O=A\\,CN\\=db1.349.example\\,OU\\=300000000000001",
        'O="CN=db1.349.example,OU=300000000000001"',
        "CN=db1.349.example",
        "OU=300000000000001",
        "CN=a,CN=b,OU=1",
        "CN=a,OU=1,OU=2",
        "CN=a,OU=1,OU=1",
        "CN=,OU=1",
        "CN= ,OU=1",
    ],
)
def test_an_ambiguous_or_missing_identity_is_nobodys(text):
    assert identity_of_text(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CN",
        "=a",
        "CN=a,",
        "CN=a,,OU=1",
        'CN="a',
        'CN="a"b',
        "CN=a\\",
        "CN=\\q",
        "CN=\\ff",
        "CN=#0403616263",
        "é=a",
        "CN=a" * 2000,
    ],
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(NameUnreadable):
        parse_name(text)


def test_blanks_at_the_end_go_unless_escaped():
    assert parse_name("CN=a  ,OU=b\\ ") == [("CN", "a"), ("OU", "b ")]
    assert parse_name("CN=a\\\\ ,OU=b\\\\\\  ") == [("CN", "a\\"), ("OU", "b\\ ")]


VALUE = st.text(min_size=1, max_size=30).filter(lambda value: "\x00" not in value and value.isprintable())


@given(VALUE, VALUE, VALUE)
def test_what_cryptography_writes_is_what_we_read(cn, ou, o):
    written = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, o),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, ou),
            x509.NameAttribute(NameOID.COMMON_NAME, cn),
        ]
    ).rfc4514_string()
    assert sorted(parse_name(written)) == sorted([("O", o), ("OU", ou), ("CN", cn)])


@given(st.text(st.sampled_from('CNOU=,+;\\"# aé0\x00'), max_size=40))
def test_any_text_is_a_name_or_refused(text):
    try:
        pairs = parse_name(text)
    except NameUnreadable:
        return
    assert pairs


def test_a_certificate_gives_its_identity():
    assert identity_of(issue(name("DB1.349.example", "3490")).certificate) == identity(
        "db1.349.example", "3490"
    )
    assert identity_of(issue(name("db1.349.example")).certificate) is None
    two = name("a", "1", (NameOID.COMMON_NAME, "b"))
    assert identity_of(issue(two).certificate) is None
    accents = identity_of(issue(name("L'Été", "3")).certificate)
    # Composed and decomposed accents are the same name.
    assert accents == identity_of_text("CN=L'E\u0301te\u0301,OU=3")


@pytest.mark.requirement("DB.SO.04")
def test_a_certificate_bears_its_common_names_and_its_dns_names():
    bearing = issue(name("RIS.Hopital", "1", (NameOID.COMMON_NAME, "Second")), dns=("ris2.hopital",))
    assert names_borne(bearing.certificate) == {"ris.hopital", "second", "ris2.hopital"}
    plain = issue(name("L'Été, OU=RIS", "1"), ips=("10.0.0.1",))
    assert names_borne(plain.certificate) == {"l'été, ou=ris"}
    assert names_borne(issue(name("ris")).certificate) == {"ris"}
