"""Every request leaves one audit record, its metrics, and the notices an administrator needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred

from drimbox import metrics
from drimbox.config import Appliance, Config, DmpSettings, PscSettings, TrustSettings
from drimbox.errors import (
    DrimboxError,
    InstanceLevelUnsupported,
    KosMismatch,
    PacsUnavailable,
    PeerNotListed,
    TokenInvalid,
)
from drimbox.ports import AuditEvent, Count, Introspection
from drimbox.source.attempt import Delivered, Incomplete
from drimbox.source.clearance import Clearance
from drimbox.wado.accept import Acceptable
from drimbox.wado.gate import ConsumerPeer, WadoGate
from drimbox.wado.request import ImagesRequest
from tests.wado.test_server import SITE

PATH = Path("/nowhere")
PEER = ConsumerPeer("192.0.2.7", True, "CN=consumer")
REQUEST = ImagesRequest("2.25.1", "2.25.2", "2.25.3", "token", Acceptable(()), "1999999999")


class Around:
    """Deliveries, whitelist, audit trail and notices in one."""

    def __init__(self) -> None:
        self.result = Delivered("2.25.1", "site1", Introspection("899700000000", None, None))
        self.events: list[AuditEvent] = []
        self.notices: list[dict[str, str]] = []
        self.counts: list[Count] = []
        self.in_list = True
        #: Whether a delivery gets as far as its images, what of it is open then, and what goes wrong.
        self.traced = False
        self.begun: dict[str, tuple[AuditEvent, list[Count]]] = {}
        self.bug: Exception | None = None
        self.away: Exception | None = None
        config = Config(
            Appliance(PATH, "349"),
            (SITE,),
            (),
            (),
            TrustSettings(PATH, PATH, PATH),
            DmpSettings("https://dmp.example", PATH),
            PscSettings("https://psc.example", "id", PATH),
        )
        parts: Any = self
        self.compared: list[str] = []
        self.gate = WadoGate(config, parts, parts, parts, parts, self.compare, parts, parts)

    async def compare(self, study_uid: str) -> None:
        self.compared.append(study_uid)

    async def deliver(
        self, site: Any, request: Any, answer: Any, consumer: str, begin: Callable[[Delivered], Clearance]
    ) -> Delivered:
        assert consumer == "CN=consumer"
        if self.traced:
            begin(attrs.evolve(self.result, error=None, cut=False))
        if self.bug is not None:
            raise self.bug
        return self.result

    async def begin(self, key: str, event: AuditEvent, counts: Sequence[Count]) -> None:
        if self.away is not None:
            raise self.away
        self.begun[key] = (event, list(counts))

    async def end(self, key: str, event: AuditEvent, counts: Sequence[Count], *, begun: bool) -> None:
        assert begun is (self.begun.pop(key, None) is not None)
        self.events.append(event)
        self.counts += counts

    def lists(self, certificate: Any) -> bool:
        return self.in_list

    def serves(self, site: Any) -> bool:
        return self.in_list

    async def add(self, counts: Sequence[Count]) -> None:
        self.counts += counts

    async def record(self, event: AuditEvent) -> None:
        self.events.append(event)

    async def post(self, *, key: str, code: str, text: str) -> None:
        self.notices.append({"key": key, "code": code, "text": text})

    def serve(self, **result: Any) -> DrimboxError | None:
        self.result = attrs.evolve(self.result, **result)
        answer: Any = None
        done: Any = Deferred.fromCoroutine(self.gate.serve(SITE, PEER, REQUEST, answer))
        assert done.called
        outcome: DrimboxError | None = done.result
        return outcome


@pytest.fixture
def around() -> Around:
    return Around()


@pytest.mark.requirement("DB.SO.46")
def test_a_delivery_is_recorded(around: Around) -> None:
    before = metrics.DELIVERIES.labels("site1", "ok")._value.get()
    assert around.serve(instances=3, bytes=1000, first_image=0.1) is None
    (event,) = around.events
    assert event.outcome == 0
    assert event.study_uid == "2.25.1"
    assert any(one.network_id == "192.0.2.7" or one.user_id for one in event.participants)
    assert metrics.DELIVERIES.labels("site1", "ok")._value.get() == before + 1
    assert not around.notices


@pytest.mark.requirement("DB.SO.47")
@pytest.mark.parametrize(
    ("error", "noticed"),
    [(PacsUnavailable("injoignable"), True), (KosMismatch(), False), (TokenInvalid(), False)],
)
def test_a_refusal_is_recorded_and_returned(around: Around, error: DrimboxError, noticed: bool) -> None:
    assert around.serve(error=error) is error
    (event,) = around.events
    assert event.outcome != 0
    assert event.outcome_description.startswith(error.code)
    assert bool(around.notices) is noticed


@pytest.mark.requirement("DB.SO.47")
def test_a_cut_answer_is_recorded_as_such_and_leaves_nothing_to_send(around: Around) -> None:
    assert around.serve(error=Incomplete("2 instances manquantes"), cut=True) is None
    assert "interrompue" in around.events[0].outcome_description


@pytest.mark.requirement("DB.SO.46", "DB.SO.47")
@pytest.mark.parametrize("traced", [False, True], ids=["before its images", "among its images"])
def test_a_delivery_that_a_bug_ends_is_recorded(around: Around, traced: bool) -> None:
    around.traced, around.bug = traced, ValueError("a bug")
    answer: Any = SimpleNamespace(begun=traced)
    done: Any = Deferred.fromCoroutine(around.gate.serve(SITE, PEER, REQUEST, answer))
    done.addErrback(lambda failure: failure.trap(ValueError))
    (event,) = around.events
    assert event.outcome == 8
    assert event.outcome_description.startswith("E1104 - Autre erreur : erreur interne")
    assert ("interrompue" in event.outcome_description) is traced
    # Of one that had begun it is known who asked.
    assert (event.participants[0].alternative_user_id == "899700000000") is traced
    assert around.begun == {}
    assert around.counts[0] == Count("STF08", "", "site1")


@pytest.mark.requirement("DB.SO.46", "DB.SO.47", "DB.SO.87")
@pytest.mark.parametrize("instance", [None, "2.25.9"])
def test_what_is_open_of_a_delivery_tells_who_asked_for_what(around: Around, instance: str | None) -> None:
    around.traced = True
    opened: list[tuple[AuditEvent, list[Count]]] = []
    end = around.end

    async def looking(key: str, event: AuditEvent, counts: Sequence[Count], *, begun: bool) -> None:
        opened.append(around.begun[key])
        await end(key, event, counts, begun=begun)

    around.end = looking  # type: ignore[method-assign]
    answer: Any = None
    asked = attrs.evolve(REQUEST, instance_uid=instance)
    Deferred.fromCoroutine(around.gate.serve(SITE, PEER, asked, answer))
    ((event, counts),) = opened
    assert event == around.events[0]
    assert counts == ([Count("STF08", "", "site1")] if instance is None else [])


@pytest.mark.requirement("DB.SO.190")
def test_a_difference_between_kos_and_pacs_is_noticed(around: Around) -> None:
    around.serve(differs=True)
    assert around.notices == [
        {
            "key": "compare-2.25.1",
            "code": "E1002",
            "text": "Examen 2.25.1 : le KOS et le PACS P diffèrent",
        }
    ]
    assert around.compared == ["2.25.1"]
    around.serve(differs=False)
    assert around.compared == ["2.25.1"]


@pytest.mark.requirement("DB.SO.154", "DB.SO.47")
@pytest.mark.parametrize("known", [True, False])
def test_a_request_that_never_reached_the_deliveries_is_recorded(around: Around, known: bool) -> None:
    site = SITE if known else None
    done = Deferred.fromCoroutine(around.gate.refused(site, "192.0.2.9", "2.25.7", PeerNotListed()))
    assert done.called
    (event,) = around.events
    assert event.outcome_description.startswith("E1102")
    assert event.participants[0].network_id == "192.0.2.9"
    assert event.objects[0].id == "2.25.7"


@pytest.mark.requirement("DB.CS.164")
def test_images_are_switched_off_by_our_own_absence_from_the_list_and_at_the_end(around: Around) -> None:
    assert around.gate.enabled(SITE)
    around.gate.open = False
    assert not around.gate.enabled(SITE)
    around.gate.open = True
    around.in_list = False
    assert not around.gate.enabled(SITE)


@pytest.mark.threat("client certificate bypassed by SNI")
def test_a_connection_that_is_no_tls_of_ours_has_no_site_and_no_peer(around: Around) -> None:
    assert around.gate.site_of(object()) is None
    assert around.gate.peer_of(object()) is None


@pytest.mark.requirement("DB.SO.87")
def test_every_request_for_a_series_counts_once_and_what_left_with_it(around: Around) -> None:
    sent = {"instances": 5, "bytes": 99, "modality": "CT", "syntaxes": {"1.2.3": 5}}
    images = [
        Count("STF09", "", "site1", "1.2.3", 5),
        Count("STF10", "", "site1", "CT", 5),
        Count("STF11", "", "site1", amount=99),
    ]
    around.serve(**sent)
    assert around.counts == [Count("STF07", "", "site1"), *images]
    around.counts.clear()
    # What left with an answer that was cut has left all the same.
    around.serve(error=Incomplete(), cut=True)
    assert around.counts == [Count("STF08", "", "site1"), *images]


@pytest.mark.requirement("DB.SO.87")
def test_one_instance_counts_nowhere(around: Around) -> None:
    answer: Any = None
    one = attrs.evolve(REQUEST, instance_uid="2.25.9")
    Deferred.fromCoroutine(around.gate.serve(SITE, PEER, one, answer))
    for study, error in (("2.25.1", InstanceLevelUnsupported()), ("", PeerNotListed())):
        Deferred.fromCoroutine(around.gate.refused(SITE, "192.0.2.9", study, error))
    assert around.counts == []
    Deferred.fromCoroutine(around.gate.refused(SITE, "192.0.2.9", "2.25.1", PeerNotListed()))
    assert around.counts == [Count("STF08", site="site1")]
