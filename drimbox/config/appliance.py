"""This gateway itself: its names, logs, store and administration."""

from __future__ import annotations

from pathlib import Path

import attrs

from drimbox.config.pairs import Certificate


@attrs.frozen
class Appliance:
    """`[drimbox]`: who this gateway is."""

    #: Where the store, the archive, the spool and the whitelist live.
    state_dir: Path
    #: Registry number of the (operator, site) pair, the `349` of `db1.349...` (requirements.md 3.12).
    system_id: str
    name: str = "DRIMbox"
    #: Name of this process among those that share its store.
    node: str = "main"
    manufacturer: str = "DRIMbox"
    #: Root for the UIDs we make; None uses the `2.25` arc.
    uid_root: str | None = None
    #: OID of this instance: XDS sourceId, sender of TD0.2.
    oid: str = "2.25.1"
    #: LPS_ID and LPS_ID_HOMOLOGATION_DMP of the VIHF.
    serial_number: str = ""
    dmp_certification: str = ""
    #: Seconds given to running work at shutdown before connections are closed.
    drain_timeout: float = 30.0


@attrs.frozen
class LogSettings:
    """`[log]`: structured logs, never with patient data."""

    #: "json" (one object a line) or "text".
    format: str = "json"
    #: debug, info, warn or error.
    level: str = "info"
    #: None writes to standard output.
    file: Path | None = None


@attrs.frozen
class StoreSettings:
    """`[store]`: SQLAlchemy URL; None is `sqlite:///<state_dir>/drimbox.db`."""

    url: str | None = None
    #: File that holds the password of a server database, one line; None: `~/.pgpass`, or none.
    password_file: Path | None = None
    #: Threads, and connections, to a server database; SQLite always has one writer.
    threads: int = 4
    #: Seconds after which the work of a node that shows no life goes to the others.
    lease: float = 120.0


@attrs.frozen
class Listener:
    """`[admin]`: a listening address, and who may call there."""

    host: str
    port: int
    #: Pair of the listener, for HTTPS; None listens in clear.
    certificate: Certificate | None = None
    #: File of the accounts (`drimbox accounts`); None asks nobody, which belongs on the loop.
    accounts: Path | None = None


@attrs.frozen
class DoctorSettings:
    """`[doctor]`: what `drimbox doctor` holds the machine against."""

    #: Bytes that every disk we write to must have free.
    min_free: int = 1024 * 1024 * 1024
    #: Seconds one examination may take in all.
    ceiling: float = 600.0
