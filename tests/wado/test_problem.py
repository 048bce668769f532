"""Every coded error as an HTTP answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox import errors
from drimbox.wado.problem import problem


def image_errors(base=errors.ImageError):
    yield base
    for sub in base.__subclasses__():
        yield from image_errors(sub)


@pytest.mark.requirement("DB.SO.47")
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.KosUnknown, 404, "E1001"),
        (errors.KosDepublished, 410, "E1002"),
        (errors.TooManyRequests, 503, "E1003"),
        (errors.PacsUnavailable, 502, "E1004"),
        (errors.RetrieveTimeout, 504, "E1005"),
        (errors.ImageIdentityMismatch, 406, "E1006"),
        (errors.PeerNotTrusted, 403, "E1101"),
        (errors.PeerNotListed, 401, "E1102"),
        (errors.KosMismatch, 404, "E1103"),
        (errors.ImageError, 500, "E1104"),
        (errors.TokenMissing, 401, "E1104"),
        (errors.TokenInvalid, 403, "E1104"),
        (errors.IntrospectionUnavailable, 502, "E1104"),
        (errors.IntrospectionTimeout, 504, "E1104"),
        (errors.NotAcceptable, 406, "E1104"),
        (errors.InstanceLevelUnsupported, 415, "E1105"),
    ],
)
def test_status_and_code_are_those_of_the_table(error, status, code):
    answered, headers, body = problem(error("précision"))
    document = json.loads(body)
    assert (answered, document["status"], document["code"]) == (status, status, code)
    assert document["title"] == error.title
    assert document["detail"] == "précision"
    assert dict(headers)[b"Content-Type"] == b"application/problem+json"
    assert dict(headers)[b"Content-Length"] == str(len(body)).encode()


def test_an_error_without_detail_has_no_member_for_it():
    assert "detail" not in json.loads(problem(errors.KosUnknown())[2])


@pytest.mark.requirement("DB.SO.32")
def test_a_bad_token_is_said_to_be_one():
    for error in (errors.TokenMissing(), errors.TokenInvalid(), errors.IntrospectionTimeout()):
        assert "jeton" in json.loads(problem(error)[2])["title"].lower()


def test_503_says_when_to_come_back():
    assert dict(problem(errors.TooManyRequests())[1])[b"Retry-After"] == b"5"
    assert dict(problem(errors.TooManyRequests(retry_after=30))[1])[b"Retry-After"] == b"30"
    assert dict(problem(errors.TooManyRequests(retry_after=-3))[1])[b"Retry-After"] == b"0"
    assert b"Retry-After" not in dict(problem(errors.KosUnknown())[1])


def test_401_carries_a_challenge():
    assert dict(problem(errors.TokenMissing())[1])[b"WWW-Authenticate"].startswith(b"Bearer")
    assert b"WWW-Authenticate" not in dict(problem(errors.TokenInvalid())[1])


def test_the_configured_status_of_e1105_is_used():
    assert problem(errors.InstanceLevelUnsupported(status=501))[0] == 501


@pytest.mark.threat("XSS in error pages")
@pytest.mark.threat("response header injection")
@given(st.text(max_size=3000), st.sampled_from(list(image_errors())))
def test_no_detail_breaks_out_of_the_body(detail, error):
    _, headers, body = problem(error(detail))
    assert not set(body) & set(b"<>&\r\n\x00")
    assert body.isascii()
    assert len(json.loads(body).get("detail", "")) <= 2000
    for name, value in headers:
        assert not set(name + value) & set(b"\r\n\x00")
