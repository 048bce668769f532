"""The whole of the configuration, section by section."""

from __future__ import annotations

import attrs

from drimbox.config.appliance import (
    Appliance,
    BackupSettings,
    DoctorSettings,
    Listener,
    LogSettings,
    StoreSettings,
)
from drimbox.config.archives import DicomSettings
from drimbox.config.delivery import CacheSettings, HomologationSettings, TranscodingSettings, WadoSettings
from drimbox.config.feed import FeedSettings, Hl7Settings, ResyncSettings, Ris
from drimbox.config.outside import DmpSettings, ProxySettings, PscSettings
from drimbox.config.sites import Site, Structure
from drimbox.config.telling import AuditSettings, HealthSettings, NotificationSettings
from drimbox.config.trust import TrustSettings


@attrs.frozen
class Config:
    """The whole file."""

    drimbox: Appliance
    sites: tuple[Site, ...]
    ris: tuple[Ris, ...]
    structures: tuple[Structure, ...]
    trust: TrustSettings
    dmp: DmpSettings
    psc: PscSettings
    log: LogSettings = LogSettings()
    admin: Listener = Listener("127.0.0.1", 9349)
    store: StoreSettings = StoreSettings()
    hl7: Hl7Settings = Hl7Settings()
    dicom: DicomSettings = DicomSettings()
    wado: WadoSettings = WadoSettings()
    health: HealthSettings = HealthSettings()
    transcoding: TranscodingSettings = TranscodingSettings()
    cache: CacheSettings = CacheSettings()
    homologation: HomologationSettings = HomologationSettings()
    feed: FeedSettings = FeedSettings()
    notifications: NotificationSettings = NotificationSettings()
    resync: ResyncSettings = ResyncSettings()
    audit: AuditSettings = AuditSettings()
    doctor: DoctorSettings = DoctorSettings()
    backup: BackupSettings = BackupSettings()
    #: None where everything outside is reached straight.
    proxy: ProxySettings | None = None

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the store."""
        return self.store.url or f"sqlite:///{self.drimbox.state_dir / 'drimbox.db'}"
