"""A hospital under attack: ordinary limits, revocation lists, a RIS known by its address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.web import server

from drimbox.config import WadoSettings
from drimbox.sim.peers import free_port
from drimbox.sim.stand import LOOPBACK
from tests.integration.hospital import Hospital
from tests.integration.probe import Probe
from tests.integration.test_certificates import Authority
from tests.integration.waiting import wait

#: Limits of an installation, which the stand otherwise lifts. What hangs is to be seen soon, and yet a busy
#: machine must have the time for what should happen.
_LIMITS = WadoSettings()
_WADO = {
    "max_connections_per_address": str(_LIMITS.max_connections_per_address),
    "connection_rate": str(_LIMITS.connection_rate),
    "connection_burst": str(_LIMITS.connection_burst),
    "queue_timeout": "30",
    "handshake_timeout": "8",
    "header_timeout": "8",
    "stall_timeout": "10",
}
_MORE = {
    "hl7": {"message_timeout": "8", "max_message_bytes": str(2 * 1024 * 1024)},
    "dicom": {"artim_timeout": "8", "idle_timeout": "15"},
    "psc": {"timeout": "20"},
    # What codecs may take here, so that what they are given does not cost the machine.
    "transcoding": {"memory": str(256 * 1024 * 1024), "max_decoded_bytes": str(64 * 1024 * 1024)},
}
#: The machine is busy with the attack: nothing that should happen is to be hurried.
_PACS = {"first_image_timeout": "60", "gap_timeout": "60", "query_timeout": "60", "quarantine": "1"}


class Besieged:
    """A gateway with two PACS, of which the second is not to be trusted."""

    def __init__(self, folder: Path) -> None:
        lists = free_port()
        trust = {"crl_urls": f'["http://{LOOPBACK}:{lists}/ACI-EL-ORG.crl"]', "crl_timeout": "20"}
        self.hospital = Hospital(
            folder,
            wado=_WADO,
            settings=_PACS,
            more={**_MORE, "trust": trust},
            # Without this option a PACS is believed about whose images they are (DB.SO.134).
            site={"check_identity": "true"},
            ris={"addresses": f'["{LOOPBACK}"]'},
        )
        wait(self.hospital.stand.start())
        web: Any = reactor
        site: Any = server.Site(Authority(self.hospital.stand))  # type: ignore[no-untyped-call]
        self._lists = web.listenTCP(lists, site, interface=LOOPBACK)

    def start(self) -> None:
        """Start the gateway; certificates have been issued and revoked by now."""
        wait(self.hospital.stand.start_gateway())

    def stop(self) -> None:
        wait(self.hospital.stop())
        pytest_twisted.blockon(self._lists.stopListening())

    # -- what it holds -----------------------------------------------------------------------------

    @property
    def _process(self) -> Path:
        return Path(f"/proc/{self.hospital.stand.pid}")

    def resident(self) -> float:
        """Megabytes of memory."""
        found = re.search(r"VmRSS:\s+(\d+) kB", (self._process / "status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def descriptors(self) -> int:
        """Count the open files of the gateway, less the store's."""
        return Probe(self.hospital).descriptors().total()

    def last_words(self) -> str:
        """Return the end of the log."""
        return self.hospital.stand.log.read_text("utf-8", "replace")[-3000:]

    def bugs(self) -> list[str]:
        """Return the lines of the log that tell of a mistake of ours."""
        marks = ("Traceback", "Unable to format", "request failed", "handler failed", "receiver failed")
        marks += ("connection failed",)
        lines = self.hospital.stand.log.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if any(mark in line for mark in marks)]
