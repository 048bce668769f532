"""A manifest of another maker that says what we would say is ours from then on."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from drimbox.errors import PacsCommunicationError
from drimbox.kos.manifest import retrieve_base
from drimbox.kos.reading import KeyImage, read_manifest
from drimbox.model import Instance, Study
from drimbox.ports import IMPORTED, ArchivedKos, Purpose, Speaker
from drimbox.sim.ris import SimAct, SimReport
from drimbox.source.adoption import is_adoptable, same_content
from drimbox.xdm.checking import pack
from drimbox.xdm.rebuilding import submission_of
from tests.source.fakes import CT, Pacses, archived, config, hl7, site
from tests.source.test_matching import Stage
from tests.store import samples
from tests.xdm.builders import published, taken

pytestmark = pytest.mark.requirement("DB.SO.30")
KOS = published().submission.kos
BASE = retrieve_base(site(), config().wado)
STUDY = samples.study()


def changed(**changes: object) -> Study:
    (series,) = STUDY.series
    return attrs.evolve(STUDY, series=(attrs.evolve(series, **changes),))


def test_the_same_instances_at_the_same_addresses_are_the_same() -> None:
    assert same_content(KOS, STUDY, BASE, {})
    # What does not point anywhere does not count.
    assert same_content(KOS, changed(description="Autre", number=9), BASE, {})


def test_anything_else_is_not() -> None:
    (one,) = STUDY.series[0].instances
    more = attrs.evolve(one, sop_instance_uid="2.25.112")
    assert not same_content(KOS, changed(instances=(one, more)), BASE, {})
    assert not same_content(KOS, changed(instances=(more,)), BASE, {})
    assert not same_content(KOS, STUDY, BASE.replace("db1", "db2"), {})
    assert not same_content(KOS, STUDY, BASE + "/x", {})
    assert not same_content(KOS, STUDY, BASE, {one.sop_instance_uid: [KeyImage("2.25.8", "2.25.9")]})
    assert not same_content(b"not a manifest", STUDY, BASE, {})


def test_only_while_what_the_archive_brought_speaks() -> None:
    assert is_adoptable(archived(fingerprint=IMPORTED), IMPORTED)
    assert not is_adoptable(archived(fingerprint=IMPORTED), "RIS")
    assert not is_adoptable(archived(), IMPORTED)


def stage(
    *kos: ArchivedKos, ris: str = IMPORTED, purpose: Purpose = Purpose.MATCH, **options: Any
) -> Stage:
    """Compare the study of the manifest with its PACS, as its archive's message speaks for it."""
    raw = pack(taken(), taken().reports[0])
    made = Stage(
        options.pop("pacses", Pacses(PACS1=STUDY)),
        *kos,
        raw=raw if ris == IMPORTED else hl7(SimReport(acts=(SimAct(study_uid=STUDY.study_uid),))),
        speaker=Speaker(1, ris),
        **options,
    )
    for each in kos:
        made.archive.submissions[each.id] = submission_of(taken(), taken().reports[0], "1999999999")
    made.match(study_uid=STUDY.study_uid, purpose=purpose)
    return made


def brought(**changes: Any) -> ArchivedKos:
    facts = {"study_uid": STUDY.study_uid, "data": KOS, "fingerprint": IMPORTED, **changes}
    return archived(**facts)


def test_what_did_not_change_is_adopted_and_not_published_again() -> None:
    done = stage(brought())
    assert done.jobs.ended == [(5, "unchanged", 7, "2.25.901")]
    assert done.jobs.adopted is not None
    assert len(done.jobs.adopted) == 64


def test_what_changed_in_the_pacs_is_published() -> None:
    more = changed(instances=(*STUDY.series[0].instances, Instance("2.25.112", CT, 2)))
    done = stage(brought(), pacses=Pacses(PACS1=more))
    assert done.jobs.ended == [(5, "queued")]
    submission = done.jobs.queued[0]["submission"]
    # By the identity and for the record of the archived submission (requirements.md 5.5).
    assert submission.report.patient == published().submission.report.patient
    assert submission.report.legal_authenticator.id == "899700000001"
    assert submission.visibility == published().submission.visibility


def test_a_report_that_came_since_is_published_whatever_it_says() -> None:
    assert stage(brought(), ris="RIS").jobs.ended == [(5, "queued")]


def test_the_study_is_looked_for_at_the_site_it_was_loaded_for() -> None:
    """No RIS of ours sent it, and the sites of this gateway are each for some."""
    sites = (site(1, ris=("RIS",)), site(2, ris=("RIS",)))
    moved = brought(site="site2", data=KOS.replace(b"https://db1", b"https://db2"))
    done = stage(moved, pacses=Pacses(PACS2=STUDY), sites=sites)
    assert done.jobs.ended == [(5, "unchanged", 7, "2.25.901")]
    # The other PACS is not asked.
    assert done.pacses.asked == ["PACS2"]


def test_gone_from_its_pacs_it_is_withdrawn() -> None:
    done = stage(brought(), pacses=Pacses(PACS1=None))
    assert [each[1] for each in done.jobs.ended] == ["removal"]


@pytest.mark.requirement("DB.SO.31")
def test_a_change_of_address_asks_no_pacs() -> None:
    asked_none = Pacses(PACS1=PacsCommunicationError("pas de réponse"))
    done = stage(brought(), purpose=Purpose.READDRESS, pacses=asked_none)
    assert done.jobs.ended == [(5, "unchanged", 7, "2.25.901")]
    elsewhere = brought(data=KOS.replace(b"https://db1", b"https://db9"))
    done = stage(elsewhere, purpose=Purpose.READDRESS, pacses=asked_none)
    assert done.jobs.ended == [(5, "queued")]
    (series,) = read_manifest(done.jobs.queued[0]["submission"].kos).series
    assert series.retrieve_url.startswith("https://db1.")
    assert asked_none.asked == []
