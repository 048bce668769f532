"""A DMP that is down, slow, lies or says no: one document in the end, or a code and a notice.

Every case sends one report while the DMP misbehaves in one way, then looks at what the DMP holds: exactly
one current KOS, or none and E006 or E007 (interfaces.md 4.9, architecture.md rule 4).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.dmp_patients import PatientRecord
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.stand import LOOPBACK, STRUCTURE, PacsAddress
from tests.integration.feed_stand import POOL, FeedStand, Studies, after, kos_instances
from tests.integration.waiting import until, wait

PUBLISH, EXISTENCE, QUERY = "TD2.1", "TD0.2", "TD3.1"

#: interfaces.md 4.9: bad submissions, which nobody sends again unchanged.
REFUSALS = [
    "XDSRegistryDuplicateUniqueIdInMessage",
    "XDSRepositoryDuplicateUniqueIdInMessage",
    "XDSNonIdenticalHash",
    "XDSNonIdenticalSize",
    "XDSRegistryMetadataError",
    "XDSMissingDocument",
    "XDSMissingDocumentMetadata",
    "XDSRepositoryMetadataError",
    "XDSExtraMetadataNotSaved",
    "XDSReplaceFailed",
    "XDSRegistryDeprecatedDocumentError",
    "UnresolvedReferenceException",
    "XDSMetadataUpdateError",
    "XDSMetadataUpdateOperationError",
    "XDSMetadataVersionError",
]
#: The server's own trouble, which passes.
TROUBLES = [
    "XDSRegistryBusy",
    "XDSRepositoryBusy",
    "XDSRegistryNotAvailable",
    "XDSRepositoryError",
    "XDSRegistryError",
    "XDSRegistryOutOfResources",
    "XDSRepositoryOutOfResources",
]


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    studies: Studies


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("dmp")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = FeedStand(
        folder,
        [PacsAddress("PACS", pacs.port, POOL)],
        extra={
            "dmp": {
                "timeout": "3",
                "connect_timeout": "2",
                "retry_first": "0.1",
                "retry_max": "0.2",
            }
        },
    )
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, pacs, Studies(folder / "studies"))
    wait(stand.stop())
    pacs.stop()


@pytest.mark.requirement("DB.SO.21", "DB.SO.22", "SC.DMP/CONF.14")
@pytest.mark.parametrize(
    ("behaviour", "times"),
    [
        pytest.param(after(transaction, kind), 2, id=f"{transaction} {kind.value}")
        for transaction in (PUBLISH, EXISTENCE, QUERY)
        for kind in (Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.CUT_ANSWER, Kind.GARBAGE, Kind.HTTP)
    ]
    + [
        pytest.param(after(PUBLISH, Kind.SILENT), 1, id="silent after registering"),
        pytest.param(after(PUBLISH, Kind.NORMAL, seconds=4.5), 1, id="answer slower than our patience"),
        pytest.param(after(PUBLISH, Kind.HTTP, status=503), 2, id="HTTP 503"),
        pytest.param(after(PUBLISH, Kind.HTTP, status=302), 1, id="HTTP 302"),
        pytest.param(after(PUBLISH, Kind.HTTP, status=429), 1, id="HTTP 429"),
        pytest.param(after(PUBLISH, Kind.FAULT), 2, id="SOAP fault of the server"),
        pytest.param(after(PUBLISH, Kind.HUGE), 1, id="endless answer"),
        *(pytest.param(after(PUBLISH, Kind.ERROR, code=code), 1, id=code) for code in TROUBLES),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_passes_leads_to_exactly_one_document(
    world: World, behaviour: Behaviour, times: int
) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    with stand.dmp_misbehaves(behaviour, times):
        await stand.report(study)
        entry = await stand.published_one(study)
    assert len(stand.kos(study, None)) == 1
    state = stand.query("SELECT state FROM kos WHERE study_uid = ?", study.study_uid)
    assert state == [("published",)]
    (uuid,) = stand.query("SELECT entry_uuid FROM kos WHERE study_uid = ?", study.study_uid)
    # A question that failed after the success leaves the identifier for later.
    assert uuid == (entry.entry_uuid,) or behaviour.transaction == QUERY
    published = [event for event in stand.audits(study.study_uid) if _is_publication(event)]
    assert len([event for event in published if event["outcome"] == 0]) == 1
    assert not [text for text in (await stand.notices()).values() if "indisponible" in text]


def _is_publication(event: dict[str, object]) -> bool:
    return event["event_id"] == "110106" and event["event_type"][0] == "ITI-41"  # type: ignore[index]


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        *(pytest.param(after(PUBLISH, Kind.ERROR, code=code), "E007", id=code) for code in REFUSALS),
        *(
            pytest.param(after(PUBLISH, Kind.ERROR, code=code), "E006", id=code)
            for code in ("XDSUnknownPatientId", "XDSPatientIdDoesNotMatch")
        ),
        pytest.param(after(PUBLISH, Kind.FAULT, code="soap:Sender"), "E007", id="fault of ours"),
        pytest.param(after(PUBLISH, Kind.HTTP, status=413), "E007", id="HTTP 413"),
        pytest.param(
            after(PUBLISH, Kind.ERROR, code="XDSDuplicateUniqueIdInRegistry"), "E007", id="false duplicate"
        ),
        pytest.param(after(EXISTENCE, Kind.FAULT, code="soap:Sender"), "E006", id="TD0.2 fault"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_refused_for_good_is_told_once_and_never_sent_again(
    world: World, behaviour: Behaviour, code: str
) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    seen = len(stand.exchanges())
    with stand.dmp_misbehaves(behaviour, 1):
        await stand.report(study)
        await stand.idle()
    text = await stand.notice_about(study.study_uid, code)
    word = behaviour.code.rpartition(":")[2] or str(behaviour.status)
    assert word in text
    assert stand.kos(study, None) == []
    assert len(stand.exchanges()) - seen == (behaviour.transaction == PUBLISH)
    failed = [event for event in stand.audits(study.study_uid) if _is_publication(event)]
    assert [event["outcome_description"][:4] for event in failed] == [code]
    assert stand.query("SELECT state FROM kos WHERE study_uid = ?", study.study_uid) == [("refused",)]
    # The next report about the study starts anew.
    await stand.report(study)
    await stand.published_one(study)


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
@pytest.mark.parametrize(
    ("behaviour", "word"),
    [
        (after(PUBLISH, Kind.FAULT, code="wsse:FailedAuthentication"), "FailedAuthentication"),
        (after(EXISTENCE, Kind.FAULT, code="wsse:InvalidSecurity"), "InvalidSecurity"),
        (after(PUBLISH, Kind.HTTP, status=403), "HTTP 403"),
        (after(QUERY, Kind.HTTP, status=404), "HTTP 404"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.transaction,
)
@pytest_twisted.ensureDeferred
async def test_a_structure_turned_away_is_told_and_nothing_of_it_is_given_up(
    world: World, behaviour: Behaviour, word: str
) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    if behaviour.transaction == QUERY:
        # The question before a replacement.
        await stand.report(study)
        await stand.published_one(study)
        world.studies.new(world.pacs, instances=3, study_uid=study.study_uid, seed=97)
    with stand.dmp_misbehaves(behaviour, None):
        await stand.report(study)
        text = await stand.notice_about("Structure 1999999999", "E007")
        assert word in text
        assert await stand.waiting() == 1
    # Mended: what waited leaves by itself, and what was said is over.
    await stand.published_one(study)
    assert not [text for text in (await stand.notices()).values() if "Structure 1999999999" in text]
    states = stand.query("SELECT state FROM kos WHERE study_uid = ? ORDER BY id", study.study_uid)
    assert "refused" not in [state for (state,) in states]
    events = [event for event in stand.audits(study.study_uid) if event["outcome"] != 0]
    assert events
    assert all(word in event["outcome_description"] for event in events)


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
@pytest_twisted.ensureDeferred
async def test_a_patient_without_record_is_e006_and_nothing_is_sent(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    seen = len(stand.exchanges())
    for patients in ({}, {"284070100499094": PatientRecord(open=False)}):
        stand.dmp.service.patients = patients
        try:
            await stand.report(study)
            await stand.idle()
        finally:
            stand.dmp.service.patients = None
        await stand.notice_about(study.study_uid, "E006")
    assert len(stand.exchanges()) == seen


@pytest.mark.requirement("DB.SO.21", "DB.SO.14")
@pytest_twisted.ensureDeferred
async def test_the_whole_queue_leaves_in_order_when_the_dmp_is_back(world: World) -> None:
    stand = world.stand
    studies = [world.studies.new(world.pacs) for _ in range(8)]
    await stand.dmp.down()
    try:
        for study in studies:
            await stand.report(study)
        await stand.notice_about("indisponible", "E007")
        queued = "SELECT count(*) FROM outbox WHERE state = 'waiting'"
        await until(lambda: stand.query(queued) == [(8,)])
    finally:
        stand.dmp.up()
    for study in studies:
        await stand.published_one(study)
    assert [len(stand.kos(study, None)) for study in studies] == [1] * 8
    assert not [text for text in (await stand.notices()).values() if "indisponible" in text]


@pytest.mark.requirement("DB.SO.13")
@pytest.mark.parametrize(
    "behaviour",
    [after(PUBLISH, kind) for kind in (Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.SILENT)]
    + [after(QUERY, kind) for kind in (Kind.CUT_BEFORE, Kind.HTTP)],
    ids=lambda behaviour: f"{behaviour.transaction} {behaviour.kind.value}",
)
@pytest_twisted.ensureDeferred
async def test_a_replacement_whose_answer_is_lost_leaves_one_current_kos(
    world: World, behaviour: Behaviour
) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    await stand.report(study)
    first = await stand.published_one(study)
    more = world.studies.new(world.pacs, instances=3, study_uid=study.study_uid, seed=99)
    with stand.dmp_misbehaves(behaviour, 1):
        await stand.report(study)
        await until(lambda: first.unique_id not in [entry.unique_id for entry in stand.kos(study)])
        await stand.idle()
    (current,) = stand.kos(study)
    assert sum(len(uids) for uids in kos_instances(current).values()) == len(more.instances)
    assert [entry.unique_id for entry in stand.kos(study, None)] == [first.unique_id, current.unique_id]
    (event,) = [e for e in stand.audits(study.study_uid) if _is_publication(e) and e["outcome"] == 0][1:]
    assert "RPLC" in str(event["objects"])


@pytest.mark.requirement("DB.SO.13")
@pytest_twisted.ensureDeferred
async def test_a_kos_withdrawn_by_others_is_published_anew(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    await stand.report(study)
    first = await stand.published_one(study)
    registry = stand.dmp.service.registry
    deleted = "urn:asip:ci-sis:2010:StatusType:Deleted"
    registry.entries[first.entry_uuid] = attrs.evolve(registry.entries[first.entry_uuid], status=deleted)
    world.studies.new(world.pacs, instances=3, study_uid=study.study_uid, seed=98)
    await stand.report(study)
    await stand.published_one(study)
    assert len(stand.kos(study, None)) == 2


@pytest.mark.requirement("SC.DMP/CONF.14")
@pytest_twisted.ensureDeferred
async def test_every_exchange_with_the_dmp_is_audited(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    seen = len(stand.dmp.service.exchanges)
    with stand.dmp_misbehaves(after(PUBLISH, Kind.HTTP), 1):
        await stand.report(study)
        await stand.published_one(study)
    exchanges = [each.transaction for each in list(stand.dmp.service.exchanges)[seen:]]
    # Existence, submission without answer, is it there?, existence, submission, its entryUUID.
    assert exchanges == [EXISTENCE, PUBLISH, QUERY, EXISTENCE, PUBLISH, QUERY]
    names = {EXISTENCE: "TD0.2", PUBLISH: "ITI-41", QUERY: "ITI-18"}
    audited = [event["event_type"][0] for event in stand.audits(study.study_uid)[1:]]
    # The last question is asked before the success it completes is written down.
    assert sorted(audited) == sorted(names[each] for each in exchanges)
    outcomes = [event["outcome"] for event in stand.audits(study.study_uid) if _is_publication(event)]
    assert outcomes == [4, 0]


@pytest.mark.requirement("DB.SO.21")
@pytest_twisted.ensureDeferred
async def test_a_signature_pair_out_of_order_costs_no_publication(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    key = stand.pki.structures[STRUCTURE].signature.key
    good = key.read_bytes()
    try:
        key.write_bytes(b"not a key")
        await stand.report(study)
        await stand.notice_about(STRUCTURE, "E007")
        assert await stand.waiting() == 1
    finally:
        key.write_bytes(good)
    await stand.published_one(study)
    assert not [text for text in (await stand.notices()).values() if "certificat" in text]


@pytest.mark.requirement("DB.SO.21")
@pytest_twisted.ensureDeferred
async def test_a_tls_pair_out_of_order_costs_no_publication(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    pair = stand.pki.structures[STRUCTURE].authentication
    kept = [shutil.copy(path, f"{path}.kept") for path in (pair.certificate, pair.key)]
    try:
        expired = stand.pki.issue_org(STRUCTURE, "auth", name="expired", expired=True)
        shutil.copy(expired.certificate, pair.certificate)
        shutil.copy(expired.key, pair.key)
        await stand.report(study)
        await stand.notice_about("indisponible", "E007")
    finally:
        for path, copy in zip((pair.certificate, pair.key), kept, strict=True):
            shutil.copy(copy, path)
    await stand.published_one(study)


@pytest.mark.requirement("DB.SO.12")
@pytest_twisted.ensureDeferred
async def test_reports_about_one_study_reach_the_dmp_one_after_the_other(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    with stand.dmp_misbehaves(Behaviour(Kind.NORMAL, seconds=0.1), None):
        sending = [
            Deferred.fromCoroutine(stand.report(study, flags={"MASQUE_PS": flag})) for flag in "NYNYNY"
        ]
        await gatherResults(sending)
        await stand.idle()
    assert len(stand.kos(study)) == 1
    assert all(entry.status.endswith((":Approved", ":Deprecated")) for entry in stand.kos(study, None))


@pytest.mark.requirement("DB.SO.22", "SC.DMP/CONF.14")
@pytest_twisted.ensureDeferred
async def test_a_question_that_is_put_again_is_no_replay_and_is_audited_twice(world: World) -> None:
    """The DMP read it, and cut a connection that another question had left open."""
    stand = world.stand
    study = world.studies.new(world.pacs)
    with stand.dmp_misbehaves(after(QUERY, Kind.CUT_AFTER)):
        await stand.report(study)
        entry = await stand.published_one(study)
    assert [each.outcome for each in stand.exchanges(QUERY)[-2:]] == ["success", "success"]
    # The DMP's own trail has both; ours must show where the first one came from.
    asked = [event for event in stand.audits(study.study_uid) if event["event_type"][0] == "ITI-18"]
    assert [event["outcome"] for event in asked] == [4, 0]
    assert [event["participants"][1]["role"] for event in asked] == ["110152"] * 2
    assert stand.query("SELECT entry_uuid FROM kos WHERE study_uid = ?", study.study_uid) == [
        (entry.entry_uuid,)
    ]
