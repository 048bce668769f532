"""What tells of the gateway outside: notices to the administrator, events to an audit repository."""

from __future__ import annotations

from drimbox.assembly.ground import Ground
from drimbox.audit.link import AtnaLink
from drimbox.notify.mail import MailChannel
from drimbox.notify.webhook import WebhookChannel
from drimbox.source.atnaexport import AtnaExport
from drimbox.source.notifying import Channel, Notifier
from drimbox.trust.ways import Ways


def make_notifier(ground: Ground, ways: Ways) -> Notifier:
    """Make what sends notices, by each channel that is configured."""
    config, stores = ground.config, ground.stores
    settings = config.notifications
    channels: list[Channel] = []
    if settings.mail is not None:
        channels.append(MailChannel(settings.mail, ground.reactor, ground.defer))
    if settings.webhook is not None:
        channels.append(WebhookChannel(settings.webhook, ways, ground.defer))
    return Notifier(
        config.drimbox, settings, channels, stores.notice_deliveries, stores.notices, ground.clock
    )


def make_atna(ground: Ground) -> AtnaExport | None:
    """Make what sends the audit trail on, None when it stays here."""
    config, stores = ground.config, ground.stores
    settings = config.audit.atna
    if settings is None:
        return None
    link = AtnaLink(settings, ground.reactor, ground.defer)
    return AtnaExport(
        config, settings, stores.audit_export, link, stores.notices, ground.clock, ground.defer
    )
