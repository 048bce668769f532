"""What Orthanc says is read strictly: nonsense is an error, never a path, a crash or another's image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from drimbox.model import Identifier, StatedPatient
from drimbox.native.http import Client
from drimbox.native.orthanc import OrthancStore, read_password
from drimbox.native.store import InstanceGone, StoredInstance, StoreUnavailable
from tests.native.scripted_http import Peer, talking

STUDY, SERIES, IMAGE = "1.2.3", "1.2.3.1", "1.2.3.1.1"
IDS = {
    name: "-".join([f"{number:08x}"] * 5)
    for number, name in enumerate(("study", "series", "image", "other"))
}
Answers = dict[str, Any]


def facts() -> Answers:
    """What a good Orthanc says, by the beginning of the request."""
    image = {
        "ID": IDS["image"],
        "MainDicomTags": {"SOPInstanceUID": IMAGE, "InstanceNumber": "1 "},
        "Metadata": {"SopClassUid": "1.2.840.10008.5.1.4.1.1.2", "TransferSyntax": "1.2.840.10008.1.2.1"},
    }
    series = {
        "ID": IDS["series"],
        "ParentStudy": IDS["study"],
        "Instances": [IDS["image"]],
        "MainDicomTags": {"SeriesInstanceUID": SERIES, "Modality": "CT", "SeriesNumber": "2"},
    }
    return {
        f"lookup {STUDY}": [{"ID": IDS["study"], "Type": "Study"}],
        f"lookup {SERIES}": [{"ID": IDS["series"], "Type": "Series"}],
        f"lookup {IMAGE}": [{"ID": IDS["image"], "Type": "Instance"}],
        "bulk Study": [
            {"ID": IDS["study"], "MainDicomTags": {"StudyInstanceUID": STUDY, "StudyDate": "20260101"}}
        ],
        "bulk Series": [series],
        "bulk Instance": [image],
        f"/series/{IDS['series']}": series,
        f"/studies/{IDS['study']}/module-patient": {"0010,0020": {"Value": "IPP"}},
        f"/studies/{IDS['study']}/statistics": {
            "CountSeries": 1,
            "CountInstances": 1,
            "DicomUncompressedSize": "7",
        },
        f"/instances/{IDS['image']}/file": b"bytes",
        "/statistics": {"CountInstances": 10},
        "/changes?last": {"Changes": [], "Last": 5, "Done": True},
        "/changes?since=5": {"Changes": [], "Last": 5, "Done": True},
    }


def orthanc(answers: Answers) -> Callable[[Peer, str], None]:
    def script(peer: Peer, request: str) -> None:
        head, _, body = request.partition("\r\n\r\n")
        path = head.split(" ")[1]
        key = path.split("&")[0]
        if path == "/tools/lookup":
            key = f"lookup {body}"
        elif path == "/tools/bulk-content":
            key = "bulk " + json.loads(body)["Level"]
        answer = answers.get(key, [] if path == "/tools/lookup" else 404)
        if isinstance(answer, int):
            peer.answer(b'{"HttpStatus": 0}', f"{answer} No")
        else:
            peer.answer(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    return script


async def at_once(work: Callable[[], Any]) -> Any:
    return work()


def store(client: Client) -> OrthancStore:
    return OrthancStore(client, at_once)  # type: ignore[arg-type]


async def listed(client: Client, *uids: str) -> list[StoredInstance]:
    return [each async for each in store(client).instances(*uids)]


@pytest_twisted.ensureDeferred
async def test_a_study_is_found_listed_and_read() -> None:
    with talking(orthanc(facts())) as (_, client):
        found = await store(client).find_study(STUDY)
        assert found is not None
        assert (found.study_uid, found.date, found.patient_id, found.ins) == (
            STUDY,
            "20260101",
            "IPP",
            None,
        )
        (series,) = found.series
        assert (series.series_uid, series.modality, series.number) == (SERIES, "CT", 2)
        assert (series.instances[0].sop_instance_uid, series.instances[0].number) == (IMAGE, 1)
        for uids in ((STUDY, SERIES), (STUDY, SERIES, IMAGE)):
            (image,) = await listed(client, *uids)
            assert image.sop_instance_uid == IMAGE
            assert b"".join([block async for block in store(client).read(image)]) == b"bytes"
        assert await store(client).mark(STUDY) == f"{IDS['study']}:1:1:7:"
        assert await store(client).find_study("9.9") is None
        assert await store(client).mark("9.9") is None
        assert await listed(client, "9.9", SERIES) == []
        assert await listed(client, STUDY, "9.9") == []
        assert await listed(client, STUDY, SERIES, "9.9") == []


@pytest.mark.requirement("DB.SO.16", "DB.SO.191")
@pytest_twisted.ensureDeferred
async def test_all_that_orthanc_says_of_the_patient_is_read() -> None:
    def authority(oid: str) -> Answers:
        return {"Value": [{"0040,0032": {"Value": oid}}]}

    answers = facts()
    answers[f"/studies/{IDS['study']}/module-patient"] = {
        "0010,0020": {"Value": "IPP"},
        "0010,0021": {"Value": "CH-EXEMPLE"},
        "0010,0024": authority("1.2.250.1.71.4.2.7.1"),
        "0010,0030": {"Value": "19840701"},
        "0010,1002": {
            "Value": [
                {"0010,0020": {"Value": "X"}, "0010,0024": authority("1.2.3")},
                {"0010,0020": {"Value": "284070100499094"}, "0010,0024": authority("1.2.250.1.213.1.4.8")},
                {"0010,0020": {"Value": "1"}, "0010,0021": {"Value": "ASIP-SANTE-INS-NIA"}},
            ]
        },
    }
    with talking(orthanc(answers)) as (_, client):
        found = await store(client).find_study(STUDY)
    assert found is not None
    assert found.ins == "284070100499094"
    assert found.patients == (
        StatedPatient(
            "IPP",
            "CH-EXEMPLE",
            "1.2.250.1.71.4.2.7.1",
            (Identifier("284070100499094", "1.2.250.1.213.1.4.8"), Identifier("1", "")),
            "19840701",
        ),
    )


@pytest.mark.threat("path traversal by UID, AE title, file name")
@pytest_twisted.ensureDeferred
async def test_what_is_no_uid_is_not_even_asked_for() -> None:
    with talking(orthanc(facts())) as (server, client):
        assert await store(client).find_study("1.2.3/../../tools/shutdown") is None
        assert await listed(client, "*", "*") == []
        assert server.requests == []


NONSENSE: dict[str, tuple[str, Any]] = {
    "id with a path": (f"lookup {STUDY}", [{"ID": "../../tools/shutdown", "Type": "Study"}]),
    "id that is none": (f"lookup {STUDY}", [{"Type": "Study"}]),
    "no list": (f"lookup {STUDY}", {"ID": IDS["study"]}),
    "no json": (f"lookup {STUDY}", b"<html>"),
    "deep json": (f"lookup {STUDY}", b"[" * 100_000),
    "refused": (f"lookup {STUDY}", 401),
    "broken": (f"lookup {STUDY}", 500),
    "two patients": (
        f"lookup {STUDY}",
        [{"ID": IDS[name], "Type": "Study"} for name in ("study", "other")],
    ),
    "instances of another kind": ("bulk Instance", [7]),
    "instance without uid": ("bulk Instance", [{"ID": IDS["image"], "MainDicomTags": {}}]),
    "series without list": (
        "bulk Series",
        [{"ID": IDS["series"], "MainDicomTags": {"SeriesInstanceUID": SERIES}}],
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
@pytest_twisted.ensureDeferred
async def test_nonsense_is_an_error(name: str) -> None:
    key, answer = NONSENSE[name]
    with talking(orthanc({**facts(), key: answer})) as (server, client):
        with pytest.raises(StoreUnavailable):
            await store(client).find_study(STUDY)
        assert not any("shutdown" in request for request in server.requests)


@pytest_twisted.ensureDeferred
async def test_a_series_of_another_study_is_none_of_this_one() -> None:
    answers = facts()
    answers[f"/series/{IDS['series']}"]["ParentStudy"] = IDS["other"]
    with talking(orthanc(answers)) as (_, client):
        assert await listed(client, STUDY, SERIES) == []


@pytest_twisted.ensureDeferred
async def test_an_instance_of_another_series_is_none_of_this_one() -> None:
    answers = facts()
    answers[f"lookup {IMAGE}"] = [{"ID": IDS["other"], "Type": "Instance"}]
    with talking(orthanc(answers)) as (_, client):
        assert await listed(client, STUDY, SERIES, IMAGE) == []


@pytest_twisted.ensureDeferred
async def test_what_goes_while_it_is_looked_at_is_gone() -> None:
    answers = facts()
    del answers[f"/studies/{IDS['study']}/module-patient"], answers[f"/studies/{IDS['study']}/statistics"]
    del answers[f"/series/{IDS['series']}"], answers[f"/instances/{IDS['image']}/file"]
    with talking(orthanc(answers)) as (_, client):
        assert await store(client).find_study(STUDY) is None
        assert await store(client).mark(STUDY) is None
        assert await listed(client, STUDY, SERIES) == []
        with pytest.raises(InstanceGone):
            await anext(store(client).read(StoredInstance(IMAGE, key=IDS["image"])))


@pytest.mark.parametrize("status", [401, 403, 500, 503])
@pytest_twisted.ensureDeferred
async def test_a_file_that_is_refused_is_an_error(status: int) -> None:
    answers = {**facts(), f"/instances/{IDS['image']}/file": status}
    with (
        talking(orthanc(answers)) as (_, client),
        pytest.raises(StoreUnavailable, match=r"refusé|répondu"),
    ):
        await anext(store(client).read(StoredInstance(IMAGE, key=IDS["image"])))


# --- changes ----------------------------------------------------------------------------------------


def added(name: str) -> dict[str, str]:
    return {"ChangeType": "NewInstance", "ID": IDS[name], "ResourceType": "Instance"}


@pytest.mark.requirement("DB.SO.27")
@pytest.mark.parametrize(
    "cursor", [None, "", "nonsense", "99:10"], ids=["first", "empty", "nonsense", "other database"]
)
@pytest_twisted.ensureDeferred
async def test_without_a_cursor_that_fits_anything_may_have_changed(cursor: str | None) -> None:
    with talking(orthanc(facts())) as (_, client):
        changes = await store(client).changes(cursor)
    assert (set(changes.studies), changes.cursor, changes.complete) == (set(), "5:10", False)


@pytest.mark.requirement("DB.SO.27")
@pytest.mark.parametrize(
    ("held", "complete"),
    [(12, True), (11, False), (13, True)],
    ids=["as many", "fewer", "more on their way"],
)
@pytest_twisted.ensureDeferred
async def test_additions_are_named_and_removals_are_counted(held: int, complete: bool) -> None:
    answers = facts()
    answers["/changes?last"]["Last"] = 9
    answers["/changes?since=5"] = {
        "Changes": [added("image"), {"ChangeType": "NewStudy"}],
        "Last": 7,
        "Done": False,
    }
    answers["/changes?since=7"] = {"Changes": [added("other")], "Last": 9, "Done": True}
    answers["/statistics"] = {"CountInstances": held}
    with talking(orthanc(answers)) as (_, client):
        changes = await store(client).changes("5:10")
    assert (set(changes.studies), changes.cursor, changes.complete) == ({STUDY}, f"9:{held}", complete)


@pytest_twisted.ensureDeferred
async def test_a_log_that_never_ends_is_read_on_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drimbox.native.orthanc._PAGES", 3)
    answers = facts()
    answers["/changes?last"]["Last"] = 500
    for since in (5, 6, 7):
        answers[f"/changes?since={since}"] = {"Changes": [added("image")], "Last": since + 1, "Done": False}
    with talking(orthanc(answers)) as (_, client):
        changes = await store(client).changes("5:10")
    # Without the count: it would hide what is removed meanwhile.
    assert (changes.cursor, changes.complete) == ("8:13", True)


# --- password ---------------------------------------------------------------------------------------


def test_the_password_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("motdepasse\n", "utf-8")
    assert read_password("u", path) == "Basic dTptb3RkZXBhc3Nl"
    assert read_password(None, None) is None
    for content in ("", "a\nb\n", "x" * 5000):
        path.write_text(content)
        with pytest.raises(StoreUnavailable):
            read_password("u", path)
    with pytest.raises(StoreUnavailable):
        read_password("u", tmp_path / "none")
