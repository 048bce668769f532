"""Choosing a transfer syntax at C-STORE negotiation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from drimbox.dicom import syntaxes as s
from drimbox.wado.accept import Acceptable, parse

UIDS = st.sampled_from(sorted(s.TABLE))


def wants(**q: float) -> Acceptable:
    """Build an Acceptable from short names: wants(JPEG_LS_LOSSLESS=0.8)."""
    ranges = ",".join(f"transfer-syntax={getattr(s, name)};q={value}" for name, value in q.items())
    return parse([ranges.encode()])


@pytest.mark.requirement("DB.CS.83")
def test_the_ten_syntaxes_of_tables_4_to_7_are_shared_and_nothing_else():
    ends = (".1", ".4.50", ".4.51", ".4.70", ".4.80", ".4.91", ".4.100", ".4.101", ".4.102", ".4.103")
    assert set(s.SHARED) == {"1.2.840.10008.1.2" + end for end in ends}


def test_the_table_agrees_with_pydicom():
    for row in s.TABLE.values():
        uid = UID(row.uid)
        if uid.name == uid:
            continue  # newer than this pydicom: JPEG XL
        assert uid.is_transfer_syntax, row
        assert uid.is_encapsulated == row.encapsulated, row


@pytest.mark.requirement("DB.SO.85")
def test_the_highest_q_the_pacs_proposes_wins():
    acceptable = wants(JPEG_LOSSLESS_SV1=0.9, JPEG_LS_LOSSLESS=0.8, EXPLICIT_LE=0.4)
    assert s.choose([s.EXPLICIT_LE, s.JPEG_LS_LOSSLESS], acceptable) == s.JPEG_LS_LOSSLESS
    assert (
        s.choose([s.EXPLICIT_LE, s.JPEG_LOSSLESS_SV1, s.JPEG_LS_LOSSLESS], acceptable)
        == s.JPEG_LOSSLESS_SV1
    )


def test_at_equal_q_lossless_comes_first_then_what_the_pacs_stores():
    acceptable = wants(JPEG_BASELINE=0.5, EXPLICIT_LE=0.5, JPEG_LS_LOSSLESS=0.5)
    for order in itertools.permutations([s.JPEG_BASELINE, s.EXPLICIT_LE, s.JPEG_LS_LOSSLESS]):
        assert s.choose(order, acceptable) == s.JPEG_LS_LOSSLESS
    assert s.choose([s.JPEG_BASELINE, s.EXPLICIT_LE], acceptable) == s.EXPLICIT_LE


@pytest.mark.requirement("DB.SO.41")
def test_implicit_is_taken_as_explicit_but_after_it():
    acceptable = wants(EXPLICIT_LE=0.4)
    assert s.choose([s.IMPLICIT_LE], acceptable) == s.IMPLICIT_LE
    for order in ([s.IMPLICIT_LE, s.EXPLICIT_LE], [s.EXPLICIT_LE, s.IMPLICIT_LE]):
        assert s.choose(order, acceptable) == s.EXPLICIT_LE
    assert s.choose([s.IMPLICIT_LE], wants(JPEG_LS_LOSSLESS=1)) is None
    # It competes with the q of Explicit, not with its own.
    both = wants(EXPLICIT_LE=0.4, JPEG_BASELINE=0.3)
    assert s.choose([s.JPEG_BASELINE, s.IMPLICIT_LE], both) == s.IMPLICIT_LE


@pytest.mark.threat("DICOM deflate bomb")
def test_deflated_and_big_endian_are_never_taken():
    anything = parse([b"transfer-syntax=*"])
    assert s.choose([s.DEFLATED_LE, s.EXPLICIT_BE], anything) is None
    asked = parse([f"transfer-syntax={s.DEFLATED_LE},transfer-syntax={s.EXPLICIT_BE};q=1,*/*".encode()])
    assert s.choose([s.DEFLATED_LE, s.EXPLICIT_BE], asked) is None


def test_a_refused_syntax_stays_refused_under_the_wildcard():
    acceptable = parse([f"transfer-syntax=*;q=0.5, transfer-syntax={s.JPEG_LS_LOSSLESS};q=0".encode()])
    assert s.choose([s.JPEG_LS_LOSSLESS, s.JPEG_BASELINE], acceptable) == s.JPEG_BASELINE


def test_the_wildcard_takes_it_as_stored():
    anything = parse([b"transfer-syntax=*"])
    assert s.choose([s.IMPLICIT_LE, s.EXPLICIT_LE, s.JPEG_LS_LOSSLESS], anything) == s.JPEG_LS_LOSSLESS
    assert s.choose([s.JPEG_LOSSLESS_SV1, s.JPEG_LS_LOSSLESS], anything) == s.JPEG_LOSSLESS_SV1
    assert s.choose([s.JPEG_LS_LOSSLESS, s.JPEG_LOSSLESS_SV1], anything) == s.JPEG_LS_LOSSLESS


@pytest.mark.requirement("DB.CS.83")
def test_what_is_outside_the_list_is_not_taken_even_when_asked_for():
    acceptable = parse([b"transfer-syntax=*, transfer-syntax=1.2.840.10008.1.2.4.90"])
    assert s.choose([s.JPEG2000_LOSSLESS, "1.2.3.4"], acceptable) is None


@given(st.lists(UIDS, max_size=8), st.lists(st.tuples(UIDS, st.integers(0, 10)), min_size=1, max_size=12))
def test_the_choice_is_proposed_acceptable_and_no_other_is_better(proposed, wanted):
    ranked = tuple((uid, q / 10) for uid, q in wanted if q and s.is_shared(uid))
    acceptable = Acceptable(ranked)
    chosen = s.choose(proposed, acceptable)
    leaving = [s.served_as(uid) for uid in proposed]
    q = [acceptable.q(uid) for uid in leaving if uid is not None]
    if chosen is None:
        assert not any(q)
    else:
        assert chosen in proposed
        assert acceptable.q(s.served_as(chosen)) == max(q) > 0


def test_what_could_be_offered_is_said_in_words():
    assert s.offered() == s.SHARED
    assert s.offered([s.IMPLICIT_LE, s.JPEG2000_LOSSLESS, s.EXPLICIT_LE]) == (s.EXPLICIT_LE,)
    assert "JPEG-LS Lossless (1.2.840.10008.1.2.4.80)" in s.offered_text([s.JPEG_LS_LOSSLESS])
    assert s.offered_text([]).endswith("aucune")
