"""Whom the gateway tells how it is: notices, probes, the audit trail."""

from __future__ import annotations

from pathlib import Path

import attrs

from drimbox.config.pairs import Certificate


@attrs.frozen
class HealthSettings:
    """`[health]`: who may ask the viewer names for the state of the gateway (DB.SO.182, DB.SO.183)."""

    #: Addresses or networks that may ask; those of the list are added.
    addresses: tuple[str, ...] = ()
    #: File that holds the list of the probes' addresses; read again every few minutes.
    addresses_file: Path | None = None
    #: Where that list is published; not both.
    addresses_url: str | None = None
    #: PEM file of the roots of that server's certificate; None uses the system's.
    addresses_url_roots: Path | None = None
    #: Seconds between two fetches of the list.
    addresses_period: float = 86400.0
    #: Only the lines of the list that hold one of these texts count; empty is all.
    regions: tuple[str, ...] = ()
    #: Seconds an answer is good for, whoever asks.
    keep: float = 5.0
    #: Seconds a PACS may leave a C-ECHO without an answer before it counts as down.
    pacs_timeout: float = 5.0
    #: Give an answer that says DOWN the HTTP status 503, not 200 (decisions.md).
    down_is_503: bool = False


@attrs.frozen
class MailSettings:
    """`[notifications.mail]`: notices by e-mail, through the relay of the structure (DB.SO.21)."""

    host: str
    sender: str
    recipients: tuple[str, ...]
    port: int = 587
    #: "starttls", "tls" (from the first byte), or "none" for a relay on this machine.
    security: str = "starttls"
    user: str | None = None
    #: File that holds the password of `user`, one line.
    password_file: Path | None = None
    #: PEM file of the roots of the relay's certificate; None uses the system's.
    roots: Path | None = None
    #: Least severity that is sent.
    severity: str = "attention"
    #: Seconds one mail may take in all.
    timeout: float = 20.0


@attrs.frozen
class WebhookSettings:
    """`[notifications.webhook]`: notices by HTTPS POST of JSON (DB.SO.21)."""

    url: str
    #: PEM file of the roots of the server's certificate; None uses the system's.
    roots: Path | None = None
    #: File that holds a bearer token, one line; None sends none.
    token_file: Path | None = None
    severity: str = "attention"
    #: Seconds one request may take in all.
    timeout: float = 10.0


@attrs.frozen
class NotificationSettings:
    """`[notifications]`: notices to the administrator (DB.SO.21)."""

    #: Least seconds between two digests by one channel.
    interval: float = 900.0
    #: First and longest wait after a digest that could not be delivered, seconds.
    retry_first: float = 30.0
    retry_max: float = 3600.0
    #: Seconds an acknowledged notice is kept.
    keep: float = 365 * 86400.0
    #: None sends no mail, and no request.
    mail: MailSettings | None = None
    webhook: WebhookSettings | None = None


@attrs.frozen
class AtnaSettings:
    """`[audit.atna]`: every event sent on to an audit repository, syslog over TLS (DB.CS.96)."""

    host: str
    #: PEM file of the roots of its certificate.
    roots: Path
    #: What we show it: both sides prove who they are (IHE ITI-19).
    client: Certificate
    port: int = 6514
    #: Events of one session at most: so many may come twice when its end is not known.
    batch: int = 100
    #: Seconds between two looks for events to send.
    period: float = 5.0
    #: Seconds one session may take in all.
    timeout: float = 30.0
    #: First and longest wait after a session that was not confirmed, seconds.
    retry_first: float = 5.0
    retry_max: float = 300.0
    #: Seconds the oldest event may wait before the administrator is told.
    late: float = 3600.0
    #: A session counts only when the repository ends it by TLS too (RFC 5425 4.4): nobody else can.
    require_close_notify: bool = True
    #: Private enterprise number (IANA) under which each message names its event; None leaves that out.
    enterprise_number: int | None = None


@attrs.frozen
class AuditSettings:
    """`[audit]`: the audit trail (DB.CS.06)."""

    #: Seconds an event is kept; None keeps all of them for ever.
    keep: float | None = None
    #: None sends nothing.
    atna: AtnaSettings | None = None
