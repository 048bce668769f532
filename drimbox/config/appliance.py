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
class CertifiedAccount:
    """`[[admin.client]]`: the account of whoever shows such a certificate; all that is named must be so."""

    #: Name in the audit trail.
    account: str
    #: "operator" or "auditor" (`accounts.Role`).
    role: str
    #: The one CN, and the one OU, of its subject.
    cn: str | None = None
    ou: str | None = None
    #: SHA-256 of the certificate, hexadecimal, with or without colons.
    fingerprint: str | None = None


@attrs.frozen
class Listener:
    """`[admin]`: a listening address, and who may call there.

    Without `accounts` and `clients` nobody is asked, which belongs on the loop.
    """

    host: str
    port: int
    #: Pair of the listener, for HTTPS; None listens in clear.
    certificate: Certificate | None = None
    #: File of the accounts (`drimbox accounts`).
    accounts: Path | None = None
    #: PEM file of the authorities of client certificates; None asks for none. Nobody else's, above all not
    #: those of the Consumers.
    client_roots: Path | None = None
    #: Revocation lists of these, PEM or DER; None verifies no revocation.
    client_crls: Path | None = None
    clients: tuple[CertifiedAccount, ...] = ()
    #: Seconds in which a request must have come whole, the handshake before the first one included.
    request_timeout: float = 20.0


@attrs.frozen
class DoctorSettings:
    """`[doctor]`: what `drimbox doctor` holds the machine against."""

    #: Bytes that every disk we write to must have free.
    min_free: int = 1024 * 1024 * 1024
    #: Seconds one examination may take in all.
    ceiling: float = 600.0


@attrs.frozen
class BackupSettings:
    """`[backup]`: where backups go unless whoever asks says otherwise (DB.SO.24)."""

    folder: Path | None = None
    #: Public keys (age) they are sealed for; none leaves keys and secrets out of them.
    recipients: tuple[str, ...] = ()
    #: How many are kept in the folder; None keeps all.
    keep: int | None = None
    #: Seconds that a backup, or the check of one, may take.
    timeout: float = 6 * 3600.0
