"""The doors of the use-cases: what `feed`, `publication`, `delivery` and the others need from outside.

Adapters implement these protocols without knowing the use-cases; `service.py` joins them. Every method
is a coroutine that runs on the reactor thread; none blocks it. One module an idea; all names are also
here.
"""

from __future__ import annotations

from drimbox.ports.audit import (
    AgeingTrail,
    AuditEvent,
    AuditObject,
    AuditParticipant,
    AuditSpool,
    AuditTrail,
    BatchDelivery,
    BatchNotDelivered,
    ExportBacklog,
    ExportedEvent,
    OpenRecords,
)
from drimbox.ports.cache import (
    CacheDamaged,
    CachedInstance,
    CachedSeries,
    CacheWriter,
    ForgottenStudies,
    ForgottenStudy,
    InstanceWriter,
    SeriesCache,
)
from drimbox.ports.feed import (
    ABSENT,
    IMPORTED,
    FeedJob,
    Inbox,
    InboxMessage,
    ParkedRow,
    Purpose,
    ReportSaid,
    Speaker,
    Voice,
    parked_key,
)
from drimbox.ports.figures import Count, SpeedMeasure, SpeedMeasures, Statistics
from drimbox.ports.images import Archives, ImageArchive, KnownStudy, MoveRun, Pacses, PacsMover, StudyMemory
from drimbox.ports.notices import Digest, Notice, Notices, OutageNotices, Severity
from drimbox.ports.record import (
    Accepted,
    ArchivedKos,
    DmpUnavailable,
    Doubtful,
    NotAdmitted,
    Outcome,
    Record,
    Refused,
    RegistryEntry,
    Removal,
    Submission,
)
from drimbox.ports.spool import SpoolArea, SpoolFile, SpoolFull
from drimbox.ports.surroundings import Clock, InThread
from drimbox.ports.tokens import Introspection, Introspector

__all__ = [
    "ABSENT",
    "IMPORTED",
    "Accepted",
    "AgeingTrail",
    "ArchivedKos",
    "Archives",
    "AuditEvent",
    "AuditObject",
    "AuditParticipant",
    "AuditSpool",
    "AuditTrail",
    "BatchDelivery",
    "BatchNotDelivered",
    "CacheDamaged",
    "CacheWriter",
    "CachedInstance",
    "CachedSeries",
    "Clock",
    "Count",
    "Digest",
    "DmpUnavailable",
    "Doubtful",
    "ExportBacklog",
    "ExportedEvent",
    "FeedJob",
    "ForgottenStudies",
    "ForgottenStudy",
    "ImageArchive",
    "InThread",
    "Inbox",
    "InboxMessage",
    "InstanceWriter",
    "Introspection",
    "Introspector",
    "KnownStudy",
    "MoveRun",
    "NotAdmitted",
    "Notice",
    "Notices",
    "OpenRecords",
    "OutageNotices",
    "Outcome",
    "PacsMover",
    "Pacses",
    "ParkedRow",
    "Purpose",
    "Record",
    "Refused",
    "RegistryEntry",
    "Removal",
    "ReportSaid",
    "SeriesCache",
    "Severity",
    "Speaker",
    "SpeedMeasure",
    "SpeedMeasures",
    "SpoolArea",
    "SpoolFile",
    "SpoolFull",
    "Statistics",
    "StudyMemory",
    "Submission",
    "Voice",
    "parked_key",
]
