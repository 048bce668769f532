"""Every measure gives its figures on a small scale, with real peers where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from bench.auditing import measure_audit
from bench.baseline import Floor, Incomplete, measure_receivers
from bench.codecs import PAIRS
from bench.door import measure_door
from bench.first import measure_first
from bench.gateway import Gateway
from bench.growth import measure_tiny
from bench.health import measure_health
from bench.move import MoveFailed, bare_move
from bench.parallel import measure_parallel
from bench.pipeline import measure_pipeline
from bench.plan import Plan
from bench.results import Results
from bench.rivals import PLUGIN, measure_dicomweb, measure_obvious
from bench.site import DCMQRSCP_STUDY, Site, open_site
from bench.study import Studies, make_studies
from bench.transcoding import measure_codecs, measure_transcoded
from drimbox.sim.peers import PeerMissing, find_program
from drimbox.sim.studies import make_study

PLAN = Plan(
    instances=3,
    repeat=1,
    repeat_slow=1,
    repeat_first=1,
    small=1,
    large=2,
    parallel=(1, 2),
    tiny=5,
    slow_instances=2,
    codec_seconds=0.05,
    workers=(1,),
    dcmtk=True,
)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    return make_studies(PLAN, data=tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, studies: Studies) -> Iterator[Site]:
    try:
        find_program("movescu")
        folder = tmp_path_factory.mktemp("site")
        with open_site("dcmqrscp", folder, studies, PLAN, Results()) as site:
            yield site
    except PeerMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    folder = site.folder / "gateway"
    with Gateway(folder, site.pacs, port=site.gateway_port, pool=site.pool) as gateway:
        yield gateway


def figures(site: Site) -> tuple[Site, Results]:
    """A site of its own for the figures of one test."""
    results = Results()
    return attrs.evolve(site, results=results), results


@pytest.mark.peer("dcmqrscp")
def test_receivers_of_others(site: Site) -> None:
    here, results = figures(site)
    measure_receivers(here, everything=True)
    names = {result.name for result in results.all()}
    kinds = ("pynetdicom_receiver", "dcmtk_receiver", "storescp_receiver")
    assert names == {f"{prefix}{kind}.study" for prefix in ("", "dcmqrscp.") for kind in kinds}
    assert all(result.value > 0 for result in results.all())
    assert results.get("dcmtk_receiver.study") == results.get("dcmqrscp.dcmtk_receiver.study")


@pytest.mark.peer("dcmqrscp")
def test_a_move_that_is_not_whole_gives_no_figure(site: Site, tmp_path: Path) -> None:
    with pytest.raises(MoveFailed, match="MoveDestinationUnknown"):
        bare_move(site.pacs, site.study, "NOWHERE")
    with pytest.raises(MoveFailed, match="movescu ended"):
        bare_move(site.pacs, site.study, "NULL")  # nobody listens there
    with Floor(site) as floor:
        more = make_study(tmp_path, instances=4, study_uid=site.study.study_uid)
        known = attrs.evolve(site.study.series[0], instances=more.instances)
        with pytest.raises(Incomplete, match="3 instances of 4"):
            floor.move(attrs.evolve(site.study, series=(known,)))
        assert floor.move(site.study, at_once=2).seconds > 0
        assert floor.movescu(site.study) > 0
    site.pacs.pause()
    try:
        with pytest.raises(MoveFailed, match="had not ended"):
            bare_move(site.pacs, site.study, "NULL", timeout=0.3)
    finally:
        site.pacs.resume()


def test_dcmqrscp_is_not_asked_to_hold_more_than_it_can(studies: Studies) -> None:
    def holds(name: str, size: int) -> bool:
        site = Site.__new__(Site)
        object.__setattr__(site, "name", name)
        return site.holds(type("Study", (), {"size": size})())

    assert holds("dcmqrscp", DCMQRSCP_STUDY - 1)
    assert not holds("dcmqrscp", DCMQRSCP_STUDY)
    assert holds("orthanc", 10 * DCMQRSCP_STUDY)


@pytest.mark.peer("dcmqrscp")
def test_gateway_measured_beside_the_floor(site: Site, gateway: Gateway) -> None:
    here, results = figures(site)
    measure_pipeline(here, gateway)
    measure_first(here, gateway)
    measure_tiny(here, gateway)
    measure_parallel(here, gateway)
    value = {result.name.removeprefix("dcmqrscp."): result.value for result in results.all()}
    assert value["pipeline_ratio"] == pytest.approx(value["study"] / value["bare_move"])
    assert 0 < value["first_image"] < 5
    assert 0 < value["first_image_after_store"] < 5
    assert value["tiny.rate"] > 0
    assert value["parallel.2.kept"] >= value["parallel.2.to_single"]
    assert value["parallel.2.slowest"] >= 1


@pytest.mark.peer("dcmqrscp", "Orthanc")
def test_others_at_the_same_task(site: Site, gateway: Gateway) -> None:
    here, results = figures(site)
    measure_obvious(here, gateway)
    assert (results.get("dcmqrscp.obvious_ratio") or 0) > 0
    if not PLUGIN.exists():
        with pytest.raises(PeerMissing, match="orthanc-dicomweb"):
            measure_dicomweb(here, gateway)
        pytest.skip("orthanc-dicomweb is not installed")
    measure_dicomweb(here, gateway)
    assert (results.get("dcmqrscp.dicomweb_ratio") or 0) > 0
    assert "orthanc-dicomweb" in results.peers


@pytest.mark.peer("dcmqrscp")
def test_transcoding_alone_and_on_the_way(site: Site, gateway: Gateway, tmp_path: Path) -> None:
    here, results = figures(site)
    measure_transcoded(here, gateway)
    assert (results.get("dcmqrscp.transcoded.first_image") or 0) > 0
    measure_codecs(results, PLAN, tmp_path)
    assert not results.failed
    rates = [result for result in results.all() if result.name.endswith(".1w.rate")]
    assert len(rates) == len(PAIRS)
    assert all(rate.value > 0 for rate in rates)


def test_polls_of_the_weather_service_are_measured(tmp_path: Path) -> None:
    results = Results()
    measure_health(results, attrs.evolve(PLAN, health_seconds=0.5), tmp_path)
    assert (results.get("health.kept.rate") or 0) > 1
    assert (results.get("health.new.cpu") or 0) > (results.get("health.rest.cpu") or 0)
    for bare in ("tcp", "tls", "web"):
        assert (results.get(f"health.{bare}.cpu") or 0) > 0
    assert (results.get("health.kept.to_tls") or 0) > 0
    assert (results.get("health.flat.gateway") or 0) > 0


def test_the_audit_trail_is_searched_as_the_command_does(tmp_path: Path) -> None:
    results = Results()
    measure_audit(results, attrs.evolve(PLAN, audited=600), tmp_path)
    assert results.get("audit.found") == 10
    assert (results.get("audit.command") or 0) > 0
    assert (results.get("audit.verify") or 0) > 0


def test_the_door_is_measured_with_every_check(tmp_path: Path) -> None:
    results = Results()
    plan = attrs.evolve(PLAN, door_seconds=0.5, door_listed=3, door_revoked=5)
    measure_door(results, plan, tmp_path)
    for name in ("handshake", "asked", "tls12", "unlisted"):
        assert (results.get(f"door.{name}.rate") or 0) > 1
        assert results.get(f"door.{name}.cpu") is not None
    assert results.get("door.resumed") == 0
    assert (results.get("door.bare.full") or 0) > (results.get("door.bare.resumed") or 0) > 0
