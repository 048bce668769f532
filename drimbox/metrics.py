"""Every Prometheus metric of the gateway, declared in one place with a bounded label set.

No label ever carries a patient, a study, a professional or a peer's free text (threats.md).
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

REGISTRY = CollectorRegistry(auto_describe=True)
#: Memory, processor time, open files and start of this process (`process_...`).
ProcessCollector(registry=REGISTRY)
#: Seconds in a queue: most wait for nothing.
_WAITS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 60)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(name, text, labels, registry=REGISTRY)


REACTOR_LAG_SECONDS = Histogram(
    "drimbox_reactor_lag_seconds",
    "How late the reactor runs what was due",
    registry=REGISTRY,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
LOOKS_FAILED = _counter("drimbox_metrics_looks_failed", "Scrapes that could not look at store or disk")
STATE_FREE_BYTES = _gauge("drimbox_state_free_bytes", "Bytes free on the disk of the state folder")
BACKUP_EXPECTED = _gauge("drimbox_backup_expected", "1 when `[backup] folder` is to have backups, else 0")
BACKUP_MADE_SECONDS = _gauge(
    "drimbox_backup_made_seconds", "Unix time of the newest backup in `[backup] folder`, 0 without any"
)
HL7_MESSAGES = _counter("drimbox_hl7_messages", "HL7 messages answered", "ris", "ack")
HL7_CONNECTIONS = _gauge("drimbox_hl7_connections", "MLLP connections open")
HL7_TIMEOUTS = _counter("drimbox_hl7_timeouts", "MLLP connections cut: silent, dripping or not reading")
CONNECTIONS_REFUSED = _counter(
    "drimbox_connections_refused", "Connections refused at a door", "door", "reason"
)
WADO_CONNECTIONS = _gauge("drimbox_wado_connections", "Connections open at the WADO-RS door")
FEED_JOBS = _counter("drimbox_feed_jobs", "Studies brought in line with the PACS", "result")
PUBLICATIONS = _counter("drimbox_publications", "Submissions answered by the DMP", "result")
DMP_EXCHANGES = _counter("drimbox_dmp_exchanges", "Requests to the DMP", "transaction", "result")
DMP_SECONDS = Histogram(
    "drimbox_dmp_exchange_seconds",
    "Request to the DMP to its answer, or to giving up",
    ("transaction",),
    registry=REGISTRY,
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
QUEUE_DEPTH = _gauge("drimbox_queue_depth", "Rows of a queue waiting or in hand", "queue")
QUEUE_OLDEST_SECONDS = _gauge(
    "drimbox_queue_oldest_seconds", "Age of the oldest row waiting in a queue, 0 without any", "queue"
)
PARKED = _counter("drimbox_parked", "Rows of a queue set aside after repeated failures", "queue")
QUEUE_PARKED = _gauge("drimbox_queue_parked", "Rows of a queue set aside now", "queue")
TLS_UNCHECKED = _counter("drimbox_tls_unchecked", "Peers let in without a current revocation list")
OCSP_UNCHECKED = _counter("drimbox_ocsp_unchecked", "Requests let in without an OCSP answer")
OCSP_ANSWERS = _counter("drimbox_ocsp_answers", "OCSP responders asked", "standing")
CRL_CURRENT = _gauge("drimbox_crl_current", "1 while the revocation list of this number is current", "list")
CERTIFICATE_EXPIRES = _gauge(
    "drimbox_certificate_expires_seconds", "Unix time at which a certificate of ours expires", "certificate"
)
WHITELIST_REFRESHES = _counter("drimbox_whitelist_refreshes", "Refreshes of the whitelist", "outcome")
WHITELIST_FETCHED = _gauge(
    "drimbox_whitelist_fetched_seconds", "Unix time of the last good whitelist fetched"
)
WHITELIST_HAS_SITE = _gauge(
    "drimbox_whitelist_has_site",
    "1 while the whitelist in force has the site, whose images are else off",
    "site",
)
WHITELIST_DOMAINS = _gauge("drimbox_whitelist_domains", "Entries of the whitelist in force")
NOTIFICATIONS = _counter("drimbox_notifications", "Digests of notices sent", "channel", "result")
NOTICES_OPEN = _gauge("drimbox_notices_open", "Administrator notices not yet read")
INTROSPECTIONS = _counter("drimbox_introspections", "Access tokens verified", "outcome")
DELIVERIES = _counter("drimbox_deliveries", "WADO-RS answers", "site", "code")
DELIVERIES_RUNNING = _gauge("drimbox_deliveries_running", "WADO-RS answers being sent")
DELIVERIES_WAITING = _gauge("drimbox_deliveries_waiting", "WADO-RS requests waiting for a place")
DELIVERY_WAIT_SECONDS = Histogram(
    "drimbox_delivery_wait_seconds",
    "Request received to its place among those answered at once",
    ("site",),
    registry=REGISTRY,
    buckets=_WAITS,
)
DELIVERED_BYTES = _counter("drimbox_delivered_bytes", "Bytes of instances sent", "site")
DELIVERED_INSTANCES = _counter(
    "drimbox_delivered_instances", "Instances sent, by the transfer syntax they left in", "site", "syntax"
)
DELIVERY_SECONDS = Histogram(
    "drimbox_delivery_seconds",
    "Request received to the end of its answer, whatever it was",
    ("site",),
    registry=REGISTRY,
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 17, 30, 60, 120, 300),
)
DELIVERY_RATE = Histogram(
    "drimbox_delivery_images_per_second",
    "Images a second of complete answers of ten at least, first image to last",
    ("site", "syntax"),
    registry=REGISTRY,
    buckets=(1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000),
)
FIRST_IMAGE_SECONDS = Histogram(
    "drimbox_first_image_seconds",
    "Request received to first instance written",
    ("site",),
    registry=REGISTRY,
    buckets=(0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 5, 10, 30, 60),
)
HEALTH_POLLS = _counter("drimbox_health_polls", "Requests for the state of the gateway", "result")
POOL_SIZE = _gauge("drimbox_pool_size", "AE titles of the pool", "pacs")
POOL_USED = _gauge("drimbox_pool_used", "AE titles leased or in quarantine", "pacs", "state")
POOL_WAITING = _gauge("drimbox_pool_waiting", "Requests waiting for an AE title", "pacs")
POOL_WAIT_SECONDS = Histogram(
    "drimbox_pool_wait_seconds",
    "AE title asked for to leased, or given up",
    ("pacs",),
    registry=REGISTRY,
    buckets=_WAITS,
)
ASSOCIATIONS = _counter("drimbox_associations", "DICOM associations", "role", "result")
ARCHIVE_EXCHANGES = _counter(
    "drimbox_archive_exchanges",
    "Questions and C-MOVEs to the archive of a site",
    "site",
    "result",
)
STORE_REFUSED = _counter("drimbox_store_refused", "C-STORE refused by a check", "reason")
SPOOL_BYTES = _gauge("drimbox_spool_bytes", "Bytes in the spool")
CACHE_BYTES = _gauge("drimbox_cache_bytes", "Bytes of the series cache on disk")
CACHE_SERIES = _gauge("drimbox_cache_series", "Series in the cache")
CACHE_LOOKUPS = _counter("drimbox_cache_lookups", "Series looked for in the cache", "result")
CACHE_WRITES = _counter("drimbox_cache_writes", "Series offered to the cache", "result")
CACHE_EVICTIONS = _counter("drimbox_cache_evictions", "Series removed from the cache", "reason")
WINDOW_BYTES = _gauge("drimbox_window_bytes", "Bytes of instances held in memory")
TRANSCODED = _counter("drimbox_transcodings", "Instances given to a codec worker", "target", "result")
TRANSCODING_WAITING = _gauge("drimbox_transcoding_waiting", "Instances waiting for a codec worker")
TRANSCODING_SECONDS = Histogram(
    "drimbox_transcoding_seconds",
    "Instance given to a codec worker to its answer",
    ("target",),
    registry=REGISTRY,
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
CODEC_WORKERS = _gauge("drimbox_codec_workers", "Codec worker processes alive")
TLS_REFUSED = _counter("drimbox_tls_refused", "TLS handshakes refused")
SPEEDTEST_LATENCY = _gauge(
    "drimbox_speedtest_latency_seconds", "C-MOVE sent to first image confirmed, last good PACS test", "site"
)
SPEEDTEST_DURATION = _gauge(
    "drimbox_speedtest_duration_seconds", "First to last image confirmed, last good PACS test", "site"
)
SPEEDTESTS = _counter("drimbox_speedtests", "PACS tests", "site", "result")
AUDIT_WAITING = _gauge("drimbox_audit_waiting", "Audit events not yet confirmed by the repository")
AUDIT_WAITING_SECONDS = _gauge("drimbox_audit_waiting_seconds", "Age of the oldest of them, 0 for none")
AUDIT_SENT = _counter("drimbox_audit_sent", "Audit events confirmed by the repository")
AUDIT_SESSIONS = _counter("drimbox_audit_sessions", "Sessions with the audit repository", "result")
WALKS = _counter("drimbox_walks", "Walks over the archive that came to an end", "site", "kind", "end")
WALKS_RUNNING = _gauge("drimbox_walks_running", "Walks over the archive at work", "site", "kind")
WALK_STUDIES = _counter("drimbox_walk_studies", "Studies judged by walks", "site", "kind", "verdict")


def exposition() -> bytes:
    """Return the metrics in the Prometheus text format."""
    return generate_latest(REGISTRY)
