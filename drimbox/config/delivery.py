"""How images are given: the listener, its limits, the cache, transcoding."""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen
class WadoSettings:
    """`[wado]`: the mTLS listener and the limits of deliveries (DB.SO.35)."""

    host: str = "127.0.0.1"
    port: int = 8443
    #: Path prefixes served before `studies/...`; the first is the one written in RetrieveURL.
    prefixes: tuple[str, ...] = ("dicom-web-rs", "wado-rs")
    #: Port written in RetrieveURL when it is not 443 (tests, demonstrations); None leaves it out.
    public_port: int | None = None
    #: Deliveries running at once; never under 3 (DB.SO.35).
    max_deliveries: int = 16
    #: Of these, for one Consumer.
    max_per_consumer: int = 8
    #: Requests that may wait for their turn, half of them of one Consumer; 0 refuses at once.
    max_waiting: int = 64
    #: Seconds a request may wait, for its turn and for an AE title together, before E1003.
    queue_timeout: float = 20.0
    #: Bytes of one delivery held in memory.
    window: int = 8 * 1024 * 1024
    #: Bytes of all deliveries held in memory.
    total_window: int = 128 * 1024 * 1024
    #: Bytes one delivery, and all of them, may hold in the spool; 0 switches the spool off.
    spool: int = 2 * 1024 * 1024 * 1024
    total_spool: int = 8 * 1024 * 1024 * 1024
    #: Seconds a client may read less than 1 KB/s of what waits for it.
    stall_timeout: float = 60.0
    #: Seconds one answer may take in all, however its client reads.
    delivery_ceiling: float = 4 * 3600.0
    handshake_timeout: float = 10.0
    header_timeout: float = 15.0
    max_connections: int = 256
    #: Of these, to viewer names, which ask for no client certificate: they take nothing from the images.
    max_viewer_connections: int = 64
    max_connections_per_address: int = 64
    #: Connections a second that one address may open in the long run, and at once.
    connection_rate: float = 20.0
    connection_burst: int = 100
    #: Addresses or networks of the front ends that pass connections on; each begins with a PROXY header.
    front_ends: tuple[str, ...] = ()
    #: Seconds such a header may take.
    front_end_timeout: float = 5.0
    #: Seconds between two requests on one connection.
    idle_timeout: float = 60.0
    #: StudyInstanceUID served without KOS check (DB.SO.38 note); None for none.
    reference_study: str | None = None
    #: Key-image option: single instances may be asked for (DB.SO.195).
    instance_level: bool = False
    #: Status of E1105, the answer without that option (decisions.md).
    instance_level_status: int = 415


@attrs.frozen
class CacheSettings:
    """`[cache]`: series kept on disk as the PACS sent them (DB.SO.40)."""

    #: Off, nothing is kept and what an earlier run kept is removed at start.
    enabled: bool = False
    #: Folder of the cache; None is `<state_dir>/cache`.
    folder: Path | None = None
    #: Bytes all series may take.
    max_bytes: int = 50 * 1024 * 1024 * 1024
    #: Seconds a series is kept after it came from the PACS, however often it is asked for.
    max_age: float = 7 * 86400.0
    #: Series kept at once; the one asked for longest ago goes first.
    max_series: int = 20000
    #: Bytes of its disk the cache leaves free.
    min_free: int = 5 * 1024 * 1024 * 1024


@attrs.frozen
class HomologationSettings:
    """`[homologation]`: KOS loaded by hand for test sessions (requirements.md 2.23)."""

    #: Off, none can be loaded and those loaded before are not answered for.
    enabled: bool = False


@attrs.frozen
class TranscodingSettings:
    """`[transcoding]`: images held in a syntax that the client did not list (DB.CS.83)."""

    #: Worker processes; 0 is one for each core, four at most.
    workers: int = 0
    #: Seconds one instance may take, before its worker is killed; also of processor time.
    timeout: float = 60.0
    #: Bytes one worker may allocate beyond what it needs at rest.
    memory: int = 2 * 1024 * 1024 * 1024
    #: Longest data set transcoded, bytes; longer ones leave only as they are.
    max_instance_bytes: int = 512 * 1024 * 1024
    #: Longest decoded pixel data, bytes.
    max_decoded_bytes: int = 1024 * 1024 * 1024
    #: Instances that may wait for a worker, and their bytes in all.
    max_queue: int = 256
    max_queue_bytes: int = 512 * 1024 * 1024
    #: Quality of JPEG baseline, 1 to 100.
    jpeg_quality: int = 95
    #: Compression ratio of lossy JPEG 2000, over the bits stored.
    jpeg2000_ratio: int = 10
