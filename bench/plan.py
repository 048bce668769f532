"""How much is measured: the sizes of issue and specification, or a small run that shows that all works."""

from __future__ import annotations

import attrs

from drimbox.sim.studies import REFERENCE_INSTANCES


@attrs.frozen
class Plan:
    """Sizes and repetitions of one run."""

    #: Instances of the reference study (DB.SO.100).
    instances: int = REFERENCE_INSTANCES
    #: Repetitions of a delivery or move of the reference study; the median is kept.
    repeat: int = 5
    #: Repetitions of what is slow: receivers and gateways on pynetdicom.
    repeat_slow: int = 3
    #: Deliveries looked at for the first image.
    repeat_first: int = 9
    #: Instances of the smaller and of the larger study of growth.
    small: int = 100
    large: int = 13_000
    #: Deliveries at once.
    parallel: tuple[int, ...] = (1, 3, 8, 10, 50)
    #: Instances of 20 KB.
    tiny: int = 2_000
    #: Instances of the study for the slow client (about 20 MB) and for transcoding; bytes a second.
    slow_instances: int = 125
    slow_rate: float = 1_000_000.0
    #: Seconds each pair of transfer syntaxes is transcoded for, and with how many workers.
    codec_seconds: float = 2.0
    workers: tuple[int, ...] = (1, 2)
    #: Measure DCMTK's own receiver (`movescu +P`), which takes a minute.
    dcmtk: bool = True
    #: The feed: reports followed one by one; reports of a burst, and bursts for each number of connections.
    feed_repeat: int = 15
    feed_burst: int = 300
    feed_bursts: int = 3
    feed_connections: tuple[int, ...] = (1, 4)
    #: Series of the studies of the feed, and images in each, of small and of large ones.
    feed_series: int = 2
    feed_instances: int = 10
    feed_large_instances: int = 150
    feed_large_burst: int = 60
    #: Reports of 10 MB.
    feed_large_reports: int = 20
    #: Reports in the inbox at the start of a drain.
    feed_backlog: int = 10_000
    #: KOS in the archive.
    archived: int = 1_000_000
    #: KOS in the archive that is backed up and restored.
    saved: int = 100_000
    #: KOS of an archive that is loaded and held against the PACS, and of the month that is exported.
    scale_walk: int = 20_000
    scale_month: int = 30_000
    #: Events in the audit trail.
    audited: int = 10_000_000
    #: Processes on one store, and reports of the burst they publish.
    nodes: tuple[int, ...] = (1, 2, 4)
    nodes_burst: int = 400
    #: Seconds of polls by the weather service.
    health_seconds: float = 20.0
    #: Seconds each kind of connection is opened for; Consumers in the whitelist, certificates revoked.
    door_seconds: float = 10.0
    door_listed: int = 1_000
    door_revoked: int = 20_000


QUICK = Plan(
    instances=130,
    repeat=2,
    repeat_slow=1,
    repeat_first=3,
    small=20,
    large=400,
    parallel=(1, 3),
    tiny=200,
    slow_instances=20,
    slow_rate=4_000_000.0,
    codec_seconds=0.3,
    dcmtk=False,
    feed_repeat=3,
    feed_burst=20,
    feed_bursts=1,
    feed_connections=(1, 4),
    feed_large_instances=30,
    feed_large_burst=5,
    feed_large_reports=2,
    feed_backlog=100,
    archived=5_000,
    saved=2_000,
    scale_walk=60,
    scale_month=100,
    audited=20_000,
    nodes=(1, 2),
    nodes_burst=20,
    health_seconds=2.0,
    door_seconds=2.0,
    door_listed=50,
    door_revoked=200,
)
