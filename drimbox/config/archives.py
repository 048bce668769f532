"""Where the images are: our DICOM side, a PACS, a native archive."""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen
class DicomSettings:
    """`[dicom]`: our side of the DICOM upper layer."""

    host: str = "127.0.0.1"
    port: int = 11112
    #: Our calling AE title, and the called one for C-ECHO.
    ae_title: str = "DRIMBOX"
    #: Largest P-DATA-TF PDU we accept (PS3.8 D.1), bytes.
    max_pdu: int = 131072
    max_associations: int = 64
    #: PS3.8 ARTIM, seconds.
    artim_timeout: float = 10.0
    #: Seconds without a byte on an idle association.
    idle_timeout: float = 60.0
    connect_timeout: float = 10.0


@attrs.frozen
class Pacs:
    """`[site.pacs]`: one PACS (DB.SO.05) and how it must be treated."""

    name: str
    ae_title: str
    host: str
    port: int
    #: AE titles of ours that this PACS knows as move destinations; one C-MOVE each at a time (DB.SO.85).
    pool: tuple[str, ...]
    #: Calling AE titles its C-STORE associations may carry; empty is `ae_title` alone.
    store_ae_titles: tuple[str, ...] = ()
    #: Addresses its C-STORE associations may come from; empty is `host` alone.
    addresses: tuple[str, ...] = ()
    #: Associations we may hold open to it at once (DB.SO.121).
    max_associations: int = 8
    #: "auto" negotiates relational queries, "never" goes series by series.
    relational: str = "auto"
    #: Seconds a C-FIND or C-ECHO may stay without an answer.
    query_timeout: float = 30.0
    #: Seconds from C-MOVE to the first image, and between two images (DB.SO.47: 60 s is typical).
    first_image_timeout: float = 60.0
    gap_timeout: float = 60.0
    #: Absolute ceiling of one C-MOVE, seconds.
    move_ceiling: float = 3600.0
    #: Longest pause we put on its association before reading on into the spool.
    patience: float = 5.0
    #: Quiet seconds before a quarantined AE title is used again when no final answer came.
    quarantine: float = 60.0


@attrs.frozen
class Native:
    """`[site.native]`: an archive on this machine, in place of a PACS (DB.SO.165)."""

    name: str
    #: "orthanc", or "python" for the class of an editor (docs/native.md).
    kind: str
    #: Where it answers; required for Orthanc.
    url: str | None = None
    user: str | None = None
    #: File that holds the password of `user`, one line.
    password_file: Path | None = None
    #: PEM file of the roots of its server certificate; None uses the system's.
    roots: Path | None = None
    #: `package.module:callable` that makes the editor's class.
    factory: str | None = None
    #: A file for that class alone.
    settings: Path | None = None
    #: Seconds it may leave a question, or a reading, without an answer.
    timeout: float = 30.0
    #: Absolute ceiling of the reading of one series, seconds.
    ceiling: float = 3600.0
    #: Longest pause put on a reading before going on into the spool.
    patience: float = 5.0
    #: Instances of one delivery read at once, and of all of them.
    parallel: int = 4
    max_readings: int = 32
    #: Seconds between two looks for changed studies (DB.SO.27).
    poll: float = 30.0


@attrs.frozen
class SpeedTestSettings:
    """`[site.speedtest]`: the throughput and latency test of a PACS (DB.SO.102, DB.SO.155)."""

    #: StudyInstanceUID of the reference study that this PACS holds; None: the test cannot run.
    study: str | None = None
    #: Run by itself every `period` seconds; on demand it runs in any case.
    enabled: bool = False
    period: float = 3600.0
