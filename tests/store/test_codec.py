"""Objects stored as JSON text come back equal, or not at all."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drimbox import model, ports
from drimbox.ports import AuditEvent, Submission
from drimbox.store import codec
from drimbox.store.errors import StoreDamaged
from tests.store.samples import submission

# Any value of the declared types: hypothesis needs the annotations resolved to find them.
for _module in (model, ports):
    for _member in vars(_module).values():
        if isinstance(_member, type) and attrs.has(_member):
            attrs.resolve_types(_member)
st.register_type_strategy(datetime, st.datetimes(timezones=st.just(UTC)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.builds(Submission))
def test_any_submission_comes_back_equal(value: Submission) -> None:
    text = codec.dumps(value)
    assert text.isascii()
    assert codec.loads(text, Submission) == value
    assert codec.dumps(codec.loads(text, Submission)) == text


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.builds(AuditEvent))
def test_any_event_comes_back_equal(value: AuditEvent) -> None:
    assert codec.loads(codec.dumps(value), AuditEvent) == value


def test_bytes_are_base64_and_instants_utc() -> None:
    plain = json.loads(codec.dumps(submission()))
    assert base64.b64decode(plain["kos"]) == submission().kos
    assert plain["submission_time"] == "2026-01-12T09:30:01.123456+00:00"
    paris = timezone(timedelta(hours=1))
    assert codec.to_plain(datetime(2026, 1, 12, 10, 30, tzinfo=paris)) == "2026-01-12T09:30:00.000000+00:00"


def test_an_instant_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        codec.to_plain(datetime(2026, 1, 12))  # noqa: DTZ001


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.pop("kos"),
        lambda plain: plain.update(kos="pas du base64 !"),
        lambda plain: plain.update(kos="AA!AA==="),
        lambda plain: plain.update(sop_instance_uid=7),
        lambda plain: plain.update(secret_connection="yes"),
        lambda plain: plain.update(submission_time="2026-01-12T09:30:01"),
        lambda plain: plain.update(report=None),
    ],
)
def test_a_damaged_object_is_not_guessed_at(change: object) -> None:
    plain = json.loads(codec.dumps(submission()))
    change(plain)  # type: ignore[operator]
    with pytest.raises(StoreDamaged) as caught:
        codec.loads(json.dumps(plain), Submission)
    assert "PAT-TROIS" not in str(caught.value)


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(StoreDamaged):
        codec.loads("{", Submission)


def test_free_text_is_bounded_and_storable() -> None:
    assert codec.clip("a" * 10, 4) == "aaa…"
    assert codec.clip("a\x00b\udc80") == "a\ufffdb?"
    assert len(codec.clip("é" * 10_000)) == codec.MAX_TEXT
