"""What comes in from the RIS, and what keeps the record matching the PACS."""

from __future__ import annotations

from pathlib import Path

import attrs

from drimbox.config.pairs import Certificate


@attrs.frozen
class Hl7TlsSettings:
    """`[hl7.tls]`: MLLP over TLS, in place of MLLP in clear."""

    certificate: Certificate
    #: "none" asks for no client certificate, "optional" verifies one that is shown, "required" demands one.
    client_certificates: str = "none"
    #: PEM file of the authorities of these; None while none is asked for.
    client_roots: Path | None = None
    #: Where their revocation lists are published; without any, revocation is not checked. How often, how
    #: long and how much is fetched is that of `[trust]`.
    crl_urls: tuple[str, ...] = ()
    #: As `TrustSettings.crl_policy`.
    crl_policy: str = "hard"
    #: Seconds a handshake may take.
    handshake_timeout: float = 10.0


@attrs.frozen
class Hl7Settings:
    """`[hl7]`: the MLLP listener (DB.SO.03)."""

    host: str = "127.0.0.1"
    port: int = 2575
    max_message_bytes: int = 64 * 1024 * 1024
    #: Bytes of messages in memory, of all connections together.
    max_held_bytes: int = 256 * 1024 * 1024
    max_connections: int = 64
    max_connections_per_address: int = 16
    #: Addresses or networks of the front ends that pass connections on; each begins with a PROXY header.
    front_ends: tuple[str, ...] = ()
    #: Seconds such a header may take.
    front_end_timeout: float = 5.0
    #: Seconds between two messages before we hang up.
    idle_timeout: float = 3600.0
    #: Seconds in which less than 1 KB/s of a message comes, or the peer does not read its answers.
    message_timeout: float = 60.0
    #: Names written in MSH-3/4 of the acknowledgement when the message names no receiver.
    application: str = "DRIMBOX"
    facility: str = ""
    #: What an absent DESTDMP flag means: "error" (E005) or "yes" (interfaces.md 1.4).
    missing_destdmp: str = "error"
    #: Make no KOS when PRT-8 names another structure than the report's signatory: E005.
    check_prt_structure: bool = False
    #: None speaks MLLP in clear.
    tls: Hl7TlsSettings | None = None


@attrs.frozen
class Ris:
    """`[[ris]]`: a system that may send reports (DB.SO.04); found by MSH-3, MSH-4,
    address and certificate.
    """

    name: str
    #: MSH-3.1 it announces; None matches any.
    sending_application: str | None = None
    #: MSH-4.1 it announces; None matches any.
    sending_facility: str | None = None
    #: Addresses or networks it may call from; empty is any.
    addresses: tuple[str, ...] = ()
    #: Names (subject CN or subjectAltName DNS) of which its client certificate bears one; empty is any
    #: certificate, or none.
    certificate_names: tuple[str, ...] = ()


@attrs.frozen
class FeedSettings:
    """`[feed]`: from report to KOS."""

    #: Studies worked on at once.
    parallel: int = 2
    #: First and longest wait between two tries while a PACS is silent, or after a failure, seconds.
    retry_first: float = 10.0
    retry_max: float = 900.0
    #: Unforeseen failures in a row, of any step from message to DMP, after which a row is parked.
    max_failures: int = 10


@attrs.frozen
class ResyncSettings:
    """`[resync]`: walks over the archive of KOS (DB.SO.28, DB.SO.31)."""

    #: Hours of the day, local time, in which a walk may work: "22:00-05:00"; empty is any time.
    hours: tuple[str, ...] = ()
    #: Studies a second, and at once.
    rate: float = 10.0
    parallel: int = 2
    #: Part of the studies judged that may be withdrawn without an administrator's word.
    max_removed_share: float = 0.05
    #: As many may always be, however small the archive.
    max_removed: int = 5
