"""Reading WADO-RS requests: paths, headers, and the order of their errors."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.config import WadoSettings
from drimbox.errors import (
    BadRequest,
    DrimboxError,
    InstanceLevelUnsupported,
    NotAcceptable,
    NotServed,
    TokenInvalid,
    TokenMissing,
)
from drimbox.wado.request import Level, check_authority, read_request, read_target, split_target

SETTINGS = WadoSettings(reference_study="2.999.77")
PATH = b"/dicom-web-rs/studies/2.999.10.20.30/series/2.999.10.20.30.1"
ACCEPT = (
    b'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80; q=0.8; '
    b"boundary=**"
)
HEADERS = [
    (b"Host", b"db1.349.example"),
    (b"Accept", ACCEPT),
    (b"Authorization", b"Bearer eyJhbGciOi.eyJzdWIi-_~+/.c2ln=="),
    (b"KOS-SOPInstanceUID", b"2.999.20.1"),
    (b"Connection", b"keep-alive"),
]


def without(name):
    return [pair for pair in HEADERS if pair[0] != name]


def with_(name, value):
    return [*without(name), (name, value)]


@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize(
    "target",
    [
        PATH,
        PATH + b"/",
        PATH.replace(b"dicom-web-rs", b"wado-rs"),
        b"https://db1.349.example" + PATH,
        b"HTTPS://192.0.2.72:8082" + PATH,
        b"http://[::1]:8443" + PATH,
        PATH + b"?_=1",
    ],
)
def test_a_series_request_is_read_in_every_form(target):
    request = read_request(target, HEADERS, SETTINGS)
    assert (request.study_uid, request.series_uid) == ("2.999.10.20.30", "2.999.10.20.30.1")
    assert request.kos_uid == "2.999.20.1"
    assert request.token == "eyJhbGciOi.eyJzdWIi-_~+/.c2ln=="
    assert request.acceptable.q("1.2.840.10008.1.2.4.80") == 0.8
    assert request.situation is None


def test_header_order_case_and_blanks_mean_nothing():
    shuffled = [(name.upper(), b" \t" + value + b" ") for name, value in reversed(HEADERS)]
    assert read_request(PATH, shuffled, SETTINGS) == read_request(PATH, HEADERS, SETTINGS)
    lower = with_(b"Authorization", b"bearer   abc")
    assert read_request(PATH, lower, SETTINGS).token == "abc"


def test_several_accept_lines_are_one():
    second = ACCEPT.replace(b".80", b".70").replace(b"0.8", b"0.9")
    request = read_request(PATH, [*HEADERS, (b"accept", second)], SETTINGS)
    assert [uid[-3:] for uid, _ in request.acceptable.ranked] == [".70", ".80"]


def test_prefixes_are_those_of_the_configuration():
    bare = attrs.evolve(SETTINGS, prefixes=("", "a/rs"))
    tail = PATH.removeprefix(b"/dicom-web-rs")
    assert read_target(tail, bare).level is Level.SERIES
    assert read_target(b"/a/rs" + tail, bare).level is Level.SERIES
    for target in (
        tail,
        b"/a/rs" + tail,
        b"/x" + PATH,
        b"//dicom-web-rs" + tail,
        b"/",
        b"/healthcheck/drimbox",
    ):
        with pytest.raises(NotServed):
            read_target(target, SETTINGS)


@pytest.mark.requirement("DB.SO.195")
def test_an_instance_is_read_with_the_option():
    settings = attrs.evolve(SETTINGS, instance_level=True)
    assert read_request(PATH + b"/instances/2.999.1", HEADERS, settings).instance_uid == "2.999.1"
    assert read_request(PATH, HEADERS, settings).instance_uid is None
    with pytest.raises(BadRequest):
        read_request(PATH + b"/instances/2.999.x", HEADERS, settings)


@pytest.mark.requirement("DB.SO.32", "DB.SO.195")
def test_the_instance_level_has_its_own_error():
    with pytest.raises(InstanceLevelUnsupported) as caught:
        read_request(PATH + b"/instances/2.999.1", [], SETTINGS)
    assert (caught.value.code, caught.value.status) == ("E1105", 415)
    with pytest.raises(InstanceLevelUnsupported) as caught:
        read_request(PATH + b"/instances/2.999.1", [], attrs.evolve(SETTINGS, instance_level_status=501))
    assert caught.value.status == 501


@pytest.mark.parametrize(
    "target",
    [
        b"/dicom-web-rs/studies/2.999.1",
        b"/dicom-web-rs/studies/2.999.1/metadata",
        b"/dicom-web-rs/studies/2.999.1/instances",
        PATH + b"/metadata",
        PATH + b"/rendered",
        PATH + b"/instances",
        PATH + b"/instances/2.999.1/frames/1",
        PATH + b"/instances/2.999.1/rendered",
        b"/dicom-web-rs/studies",
        b"/dicom-web-rs/studies/",
        b"/dicom-web-rs/studies?PatientID=1",
    ],
)
def test_other_levels_are_404(target):
    with pytest.raises(NotServed) as caught:
        read_request(target, HEADERS, SETTINGS)
    assert caught.value.status == 404


@pytest.mark.threat("path traversal by UID, AE title, file name")
@pytest.mark.parametrize(
    "uid",
    [
        b"..",
        b"1..2",
        b".1",
        b"1.",
        b"",
        b"a",
        b"1.2%2e",
        b"%2e%2e",
        b"1" * 65,
        b"1;x",
        b"1\x00",
        b"\xd9\xa1.1",
        b"-1",
    ],
)
def test_a_uid_that_is_not_one_never_gets_in(uid):
    for target in (b"/wado-rs/studies/%s/series/1.2" % uid, b"/wado-rs/studies/1.2/series/%s" % uid):
        with pytest.raises((BadRequest, NotServed)):
            read_request(target, HEADERS, SETTINGS)
    with pytest.raises(BadRequest):
        read_request(PATH, with_(b"KOS-SOPInstanceUID", uid), SETTINGS)


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"",
        b"dicom-web-rs",
        b"ftp://h" + PATH,
        b"https://" + PATH,
        b"https://a@b" + PATH,
        b"https://a b" + PATH,
        PATH + b"\r\nX: y",
        PATH + b" ",
        b"/" + b"a" * 1024,
        b"https://a:b" + PATH,
    ],
)
def test_a_bad_target_is_400(target):
    with pytest.raises(BadRequest):
        split_target(target)


@pytest.mark.threat("request smuggling, pipelining")
@pytest.mark.parametrize("name", [b"Host", b"Authorization", b"KOS-SOPInstanceUID", b"Situation"])
def test_a_single_valued_header_twice_is_400(name):
    value = dict(HEADERS).get(name, b"1")
    with pytest.raises(BadRequest, match="double"):
        read_request(PATH, [*without(name), (name, value), (name.lower(), value)], SETTINGS)


def test_the_situation_is_kept_when_it_is_an_identifier():
    assert (
        read_request(PATH, [*HEADERS, (b"Situation", b"499700000001006")], SETTINGS).situation
        == "499700000001006"
    )
    for bad in (b"a b", b"\xe9", b"x" * 65, b"<script>", b"a\tb", b"'or 1=1"):
        with pytest.raises(BadRequest):
            read_request(PATH, [*HEADERS, (b"Situation", bad)], SETTINGS)


@pytest.mark.requirement("DB.SO.38")
def test_the_kos_header_is_compulsory_but_for_the_reference_study():
    with pytest.raises(BadRequest, match="KOS-SOPInstanceUID"):
        read_request(PATH, without(b"KOS-SOPInstanceUID"), SETTINGS)
    reference = b"/wado-rs/studies/2.999.77/series/2.999.77.1"
    assert read_request(reference, without(b"KOS-SOPInstanceUID"), SETTINGS).kos_uid is None
    assert read_request(reference, HEADERS, SETTINGS).kos_uid == "2.999.20.1"


@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize("value", [None, b"", b"Bearer", b"Bearer ", b"Basic abc", b"abc", b"Bearerabc"])
def test_no_bearer_token_is_401(value):
    headers = without(b"Authorization") if value is None else with_(b"Authorization", value)
    with pytest.raises(TokenMissing) as caught:
        read_request(PATH, headers, SETTINGS)
    assert caught.value.status == 401


@pytest.mark.threat("tokens: oversize, odd, logged, of others")
@pytest.mark.parametrize("token", [b"a" * 8193, b"a b", b"a,b", b"a\x00", b"\xe9", b"a=b", b"{}", b'"a"'])
def test_a_token_that_cannot_be_one_is_403_and_never_repeated(token):
    with pytest.raises(TokenInvalid) as caught:
        read_request(PATH, with_(b"Authorization", b"Bearer " + token), SETTINGS)
    assert caught.value.status == 403
    assert "a" * 20 not in str(caught.value)


def test_the_longest_token_passes_and_is_in_no_repr():
    request = read_request(PATH, with_(b"Authorization", b"Bearer " + b"a" * 8192), SETTINGS)
    assert len(request.token) == 8192
    assert "aaaa" not in repr(request)


def test_the_order_of_errors_is_that_of_the_specification():
    # Path, then headers, then the token (interfaces.md 6.4).
    with pytest.raises(NotServed):
        read_request(b"/wado-rs/studies/2.999.1", [], SETTINGS)
    with pytest.raises(BadRequest):
        read_request(PATH, [], SETTINGS)
    with pytest.raises(NotAcceptable):
        read_request(
            PATH, [(b"KOS-SOPInstanceUID", b"1.2"), (b"Accept", ACCEPT.replace(b"0.8", b"0"))], SETTINGS
        )
    with pytest.raises(TokenMissing):
        read_request(PATH, without(b"Authorization"), SETTINGS)


NAMES = ("db1.349.example", "vi1.349.example", "db2.349.example")


@pytest.mark.threat("client certificate bypassed by SNI")
def test_a_host_of_another_site_is_421():
    for host in (b"db2.349.example", b"DB2.349.example:8443", b"vi1.349.example", b"db2.349.example."):
        with pytest.raises(BadRequest) as caught:
            check_authority(PATH, [(b"Host", host)], NAMES[0], NAMES)
        assert caught.value.status == 421
    with pytest.raises(BadRequest) as caught:
        # The absolute target counts, not the header.
        check_authority(b"https://db2.349.example" + PATH, [(b"Host", b"db1.349.example")], NAMES[0], NAMES)
    assert caught.value.status == 421
    for host in (
        b"db1.349.example",
        b"DB1.349.EXAMPLE:443",
        b"192.0.2.72:8082",
        b"[::1]:1",
        b"unknown.example",
    ):
        check_authority(PATH, [(b"Host", host)], NAMES[0], NAMES)
    check_authority(PATH, [], NAMES[0], NAMES)
    for bad in ([(b"Host", b"a b")], [(b"Host", b"")], [(b"Host", b"a"), (b"host", b"a")]):
        with pytest.raises(BadRequest) as caught:
            check_authority(PATH, bad, NAMES[0], NAMES)
        assert caught.value.status == 400


HEADER = st.tuples(
    st.sampled_from([b"Host", b"Accept", b"Authorization", b"KOS-SOPInstanceUID", b"Situation", b"X"]),
    st.sampled_from([ACCEPT, b"Bearer abc", b"1.2.3", b"", b"\xff"]) | st.binary(max_size=30),
)


@given(st.sampled_from([PATH, b"/"]) | st.binary(max_size=80), st.lists(HEADER, max_size=8))
def test_anything_else_is_a_coded_error(target, headers):
    request, status = None, 0
    try:
        request = read_request(target, headers, SETTINGS)
    except DrimboxError as error:
        status = error.status
    assert status in (400, 401, 403, 404, 406, 415) or request.study_uid == "2.999.10.20.30"
