"""The hospital: two PACS with many titles, RIS, DMP, whitelist, revocation lists, an audit repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest_twisted
from twisted.internet import reactor
from twisted.web import server

from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.peers import free_port
from drimbox.sim.stand import LOOPBACK, PacsAddress, _section, _text
from drimbox.sim.studies import make_study
from tests.histories.model import INSIDE
from tests.integration.hospital import EXPLICIT_LE, IMPLICIT_LE, JPEG_LS, Hospital, Served
from tests.integration.probe import counted
from tests.integration.test_audit_export import AuditedStand
from tests.integration.test_certificates import Authority
from tests.integration.waiting import wait

#: AE titles of each PACS: who wants images shall not wait for those who compare and measure.
_TITLES = "ABCDEFGHIJKLMNOP"
#: Nothing that should happen is to be hurried on a busy machine.
_PATIENT = {
    "query_timeout": "60",
    "first_image_timeout": "60",
    "gap_timeout": "60",
    "quarantine": "1",
    "patience": "1",
    "max_associations": str(2 * len(_TITLES)),
}
#: Periods as short as can be configured, where that is a matter of configuration.
_MORE: Mapping[str, Mapping[str, str]] = {
    "psc": {"timeout": "30"},
    "dmp": {
        "timeout": "30",
        "connect_timeout": "20",
        "keep_alive": "1",
        "retry_first": "0.2",
        "retry_max": "1",
        "parallel": "4",
    },
    "feed": {"parallel": "4", "retry_first": "0.2", "retry_max": "1"},
    "health": {"addresses": f'["{LOOPBACK}"]', "keep": "1", "pacs_timeout": "60"},
    "resync": {"rate": "50"},
    # One, so that there are as many before as after.
    "transcoding": {"workers": "1"},
    "notifications": {"interval": "5"},
}


class MixedStand(AuditedStand):
    """A stand whose sites have a reference study for the speed test, run every minute."""

    def __init__(self, folder: Path, *pacses: PacsAddress, references: Sequence[str], **more: Any) -> None:
        super().__init__(folder, *pacses, **more)
        self._references = references
        #: Requests that reached the DMP, by transaction.
        self.arrived: Counter[str] = Counter()

    async def start(self) -> None:
        await super().start()
        self.dmp.arrived = lambda transaction: self.arrived.update([transaction])
        self.server.up()

    def _site(self, number: int, pacs: PacsAddress) -> list[str]:
        keys = {"study": _text(self._references[number]), "enabled": "true", "period": '"1min"'}
        return [*super()._site(number, pacs), *_section("[site.speedtest]", keys)]


@attrs.frozen
class Holding:
    """Published studies that stay as they are."""

    #: JPEG-LS in two series; what transfers quickly; much of it; what the second PACS has.
    scan: Served
    small: Served
    long: Served
    other: Served


class Mixed(Hospital):
    """One gateway in the middle of everything, whose objects can be counted."""

    stand: MixedStand

    def __init__(self, folder: Path) -> None:
        self._reference = make_study(folder / "reference", instances=4, seed=60)
        lists = free_port()
        super().__init__(
            folder,
            pacses=self._pacses,
            wado={"queue_timeout": "60", "instance_level": "true"},
            more={
                **_MORE,
                "trust": {
                    "crl_urls": f'["http://{LOOPBACK}:{lists}/ACI-EL-ORG.crl"]',
                    "crl_timeout": "20",
                    "crl_period": '"1min"',
                    "whitelist_period": '"1min"',
                },
            },
            # A PACS that announces changes.
            ris={"PACS-Z": "PACS-Z"},
        )
        web: Any = reactor
        self._lists_port, self._listen = lists, web.listenTCP
        self._lists: Any = None

    def _pacses(self, port: int) -> Sequence[PacsAddress]:
        addresses = []
        for number in (1, 2):
            pool = tuple(f"DB{number}{letter}" for letter in _TITLES)
            pacs = SimulatedPacs(f"PACS{number}", destinations=dict.fromkeys(pool, (LOOPBACK, port)))
            pacs.load(self._reference)
            pacs.start()
            self.pacs.append(pacs)
            site = {"excluded_uid_roots": f'["{INSIDE}"]'}
            addresses.append(PacsAddress(pacs.ae_title, pacs.port, pool, settings=_PATIENT, site=site))
        return addresses

    def _make_stand(
        self,
        pacses: Sequence[PacsAddress],
        dicom_port: int,
        extra: Mapping[str, Mapping[str, str]],
        ris: Mapping[str, str] | None,
    ) -> MixedStand:
        return MixedStand(
            self.folder / "stand",
            *pacses,
            references=[self._reference.study_uid] * len(pacses),
            dicom_port=dicom_port,
            extra=extra,
            ris=ris,
        )

    async def start(self) -> None:
        await self.stand.start()
        self.stand.pki.revoke()
        site: Any = server.Site(Authority(self.stand))  # type: ignore[no-untyped-call]
        self._lists = self._listen(self._lists_port, site, interface=LOOPBACK)
        with counted(self.folder):
            await self.stand.start_gateway()

    def close(self) -> None:
        """Stop everything."""
        wait(self.stop())
        if self._lists is not None:
            pytest_twisted.blockon(self._lists.stopListening())

    async def hold(self) -> Holding:
        """Publish the studies that stay."""
        made = []
        for number, (site, how) in enumerate(
            (
                (0, {"instances": 6, "series": 2, "rows": 256, "columns": 256, "transfer_syntax": JPEG_LS}),
                (0, {"instances": 8, "series": 2, "transfer_syntax": EXPLICIT_LE}),
                (0, {"instances": 10, "rows": 512, "columns": 512, "transfer_syntax": EXPLICIT_LE}),
                (1, {"instances": 5, "rows": 128, "columns": 128, "transfer_syntax": IMPLICIT_LE}),
            )
        ):
            study = make_study(self.folder / f"held-{number}", seed=61 + number, **how)
            made.append(await self.publish(study, site))
        return Holding(*made)
