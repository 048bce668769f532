"""Typed configuration: what every key of the TOML file means, its unit and its default.

These classes are pure data. `drimbox.configfile` reads the file, reports every mistake with its path,
and builds them; nobody else parses configuration. Durations are seconds, sizes are bytes; the file may
say `"30s"`, `"5min"`, `"32MiB"`. Paths are absolute once loaded (relative ones are taken from the
folder of the file). One module an idea; all names are also here.
"""

from __future__ import annotations

from drimbox.config.appliance import (
    Appliance,
    BackupSettings,
    CertifiedAccount,
    DoctorSettings,
    Listener,
    LogSettings,
    StoreSettings,
)
from drimbox.config.archives import DicomSettings, Native, Pacs, SpeedTestSettings
from drimbox.config.delivery import CacheSettings, HomologationSettings, TranscodingSettings, WadoSettings
from drimbox.config.feed import FeedSettings, Hl7Settings, Hl7TlsSettings, ResyncSettings, Ris
from drimbox.config.outside import DESTINATIONS, DmpSettings, ProxySettings, PscSettings
from drimbox.config.pairs import Certificate
from drimbox.config.sites import Site, SiteResyncSettings, Structure
from drimbox.config.telling import (
    AtnaSettings,
    AuditSettings,
    HealthSettings,
    MailSettings,
    NotificationSettings,
    WebhookSettings,
)
from drimbox.config.trust import TrustSettings
from drimbox.config.whole import Config

__all__ = [
    "DESTINATIONS",
    "Appliance",
    "AtnaSettings",
    "AuditSettings",
    "BackupSettings",
    "CacheSettings",
    "Certificate",
    "CertifiedAccount",
    "Config",
    "DicomSettings",
    "DmpSettings",
    "DoctorSettings",
    "FeedSettings",
    "HealthSettings",
    "Hl7Settings",
    "Hl7TlsSettings",
    "HomologationSettings",
    "Listener",
    "LogSettings",
    "MailSettings",
    "Native",
    "NotificationSettings",
    "Pacs",
    "ProxySettings",
    "PscSettings",
    "ResyncSettings",
    "Ris",
    "Site",
    "SiteResyncSettings",
    "SpeedTestSettings",
    "StoreSettings",
    "Structure",
    "TranscodingSettings",
    "TrustSettings",
    "WadoSettings",
    "WebhookSettings",
]
