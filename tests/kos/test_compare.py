"""The fingerprint changes with what is published, and with nothing else."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from drimbox.kos.compare import difference, fingerprint
from drimbox.kos.reading import read_manifest
from drimbox.model import Code, Identifier, Instance, Person, Visibility
from tests.kos.samples import ACT, PATIENT, REPORT, SITE, build, series, study

BASE = "https://db1.349.mesimagesmedicales.fr/dicom-web-rs"


def digest(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "report": REPORT,
        "study": study(),
        "site": SITE,
        "structure_id": "1999999999",
        "visibility": Visibility(),
        "retrieve_base": BASE,
    }
    return fingerprint(**(arguments | changes))


def report(**changes: Any) -> dict[str, Any]:
    return {"report": attrs.evolve(REPORT, **changes)}


def act(**changes: Any) -> dict[str, Any]:
    return report(acts=(attrs.evolve(ACT, **changes), REPORT.acts[1]))


def pair(**changes: Any) -> dict[str, Any]:
    return report(requests=(attrs.evolve(REPORT.requests[0], **changes), REPORT.requests[1]))


CHANGES: dict[str, dict[str, Any]] = {
    **{
        f"patient {field.name}": report(patient=attrs.evolve(PATIENT, **{field.name: "X"}))
        for field in attrs.fields(type(PATIENT))
    },
    "ipp": report(ipp=Identifier("P2", "2.25.61")),
    "ipp gone": report(ipp=None),
    "accession": pair(accession=Identifier("ACC-1", "2.25.53")),
    "accession authority": pair(accession=Identifier("ACC-7788", "2.25.99")),
    "order": pair(order=Identifier("1", "2.25.54")),
    "a request less": report(requests=REPORT.requests[:1]),
    "pairs crossed": report(
        requests=tuple(
            attrs.evolve(one, order=other.order)
            for one, other in zip(REPORT.requests, REPORT.requests[::-1], strict=True)
        )
    ),
    "modality": act(modalities=(Code("MR", "1.2"),)),
    "region": act(regions=()),
    "act": act(description="Autre"),
    "start": act(start="2026"),
    "stop": act(stop="2026"),
    "practice setting": act(practice_setting=None),
    "structure": {"structure_id": "1"},
    "masked": {"visibility": Visibility(masked_to_professionals=True)},
    "hidden from patient": {"visibility": Visibility(hidden_from_patient=True)},
    "hidden from representatives": {"visibility": Visibility(hidden_from_representatives=True)},
    "confidentiality": report(confidentiality="R"),
    "facility": report(facility_type=Code("SA02", "1.2.250.1.71.4.2.4")),
    "authenticator": report(legal_authenticator=Person("8999")),
    "language": report(language="en-GB"),
    "study date": {"study": study(date="20260113")},
    "study time": {"study": study(time="090000")},
    "study description": {"study": study(description="Autre")},
    "an instance more": {"study": study(series(1, 4), series(2, 2))},
    "an instance less": {"study": study(series(1, 2), series(2, 2))},
    "a series less": {"study": study(series(1))},
    "series number": {"study": study(attrs.evolve(series(1), number=7), series(2, 2))},
    "series description": {"study": study(series(1, description="Autre"), series(2, 2))},
    "series modality": {"study": study(series(1, modality="MR"), series(2, 2))},
    "SOP class": {"study": study(series(1, sop_class="1.2.3"), series(2, 2))},
    "instance number": {
        "study": study(
            attrs.evolve(series(1), instances=(*series(1).instances[:2], Instance("2.25.1001.1.3", "1.2"))),
            series(2, 2),
        )
    },
    "address": {"retrieve_base": "https://db2.349.mesimagesmedicales.fr/dicom-web-rs"},
    "location": {"site": attrs.evolve(SITE, retrieve_location_uid="2.25.7")},
}


@pytest.mark.requirement("DB.SO.13")
@pytest.mark.parametrize("what", CHANGES)
def test_every_published_fact_counts(what: str) -> None:
    assert digest(**CHANGES[what]) != digest()


def test_no_two_changes_collide() -> None:
    assert len({digest(**change) for change in CHANGES.values()}) == len(CHANGES)


SAME: dict[str, dict[str, Any]] = {
    "document id": report(document_id="2.25.1", set_id="2.25.2", version="2", replaces="2.25.0"),
    "title and time of the report": report(title="Autre", effective_time="2027"),
    "author": report(author=Person("1"), author_role=""),
    "act of another study": report(acts=(ACT,)),
    "requests in another order": report(requests=REPORT.requests[::-1]),
    "series in another order": {"study": study(series(2, 2), series(1))},
    "instances in another order": {
        "study": study(attrs.evolve(series(1), instances=series(1).instances[::-1]), series(2, 2))
    },
    "an empty series": {"study": study(series(1), series(2, 2), series(3, 0))},
    "display of a code": act(modalities=(Code("CT", ACT.modalities[0].scheme, "Scanographe"),)),
    "codes twice": act(modalities=ACT.modalities * 2),
    "the PACS's patient": {"study": study(patient_id="X", ins="1")},
    "old way to write a date": {"study": study(date="2026.01.12")},
}


@pytest.mark.requirement("DB.SO.12")
@pytest.mark.parametrize("what", SAME)
def test_nothing_else_counts(what: str) -> None:
    assert digest(**SAME[what]) == digest()


def test_codes_in_another_order_are_the_same() -> None:
    codes = (Code("CT", "1.2"), Code("PT", "1.2"))
    assert digest(**act(modalities=codes)) == digest(**act(modalities=codes[::-1]))


def test_the_digest_is_stable_from_one_version_to_the_next() -> None:
    """A change here republishes the whole archive at the next resynchronisation: do it knowingly."""
    assert digest() == "90f2264d0b8862bff8e7f4d940da22f68566cce962fb3cd62bf25a0c7053f98d"


def test_a_difference_names_what_came_and_went() -> None:
    before = read_manifest(build(study=study(series(1), series(2, 2))))
    after = study(series(1, 2), series(3, 1))
    found = difference(before, after)
    assert found
    assert found.series_added == ("2.25.1001.3",)
    assert found.series_removed == ("2.25.1001.2",)
    assert found.instances_added == (("2.25.1001.3", "2.25.1001.3.1"),)
    assert found.instances_removed == (
        ("2.25.1001.1", "2.25.1001.1.3"),
        ("2.25.1001.2", "2.25.1001.2.1"),
        ("2.25.1001.2", "2.25.1001.2.2"),
    )
    assert str(found) == "+1 -3 instances, +1 -1 séries"
    back = difference(after, before)
    assert (back.instances_added, back.instances_removed) == (
        found.instances_removed,
        found.instances_added,
    )


def test_a_manifest_and_the_study_it_was_made_of_do_not_differ() -> None:
    assert not difference(read_manifest(build()), study(series(2, 2), series(1)))
