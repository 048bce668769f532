"""One site whose images are in an Orthanc on the same machine, behind a relay when it is to misbehave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from drimbox.sim.peers import Orthanc, free_port
from drimbox.sim.stand import NativeAddress
from drimbox.sim.studies import GeneratedStudy, make_study
from tests.integration.archive_relay import Relay, honest, relaying
from tests.integration.hospital import Hospital, Served
from tests.integration.waiting import until


class NativeHospital(Hospital):
    """A gateway in native profile; `relay` is there when asked for."""

    def __init__(self, folder: Path, *, relayed: bool = False, **settings: str) -> None:
        self.orthanc = Orthanc(folder / "orthanc")
        self._relayed = relayed
        self.relay: Relay
        self._stack = ExitStack()
        self._settings = settings
        super().__init__(
            folder,
            pacses=self._archive,
            wado={"instance_level": "true"},
            more={"cache": {"enabled": "false" if relayed else "true"}},
        )

    def _archive(self, port: int) -> Sequence[Any]:
        self.orthanc.start()
        address = self.orthanc.http_port
        if self._relayed:
            address = free_port()
            self.relay = self._stack.enter_context(relaying(address, self.orthanc.http_port))
        settings = {
            "kind": '"orthanc"',
            "url": f'"http://127.0.0.1:{address}"',
            "timeout": "2",
            "poll": "1",
            **self._settings,
        }
        return [NativeAddress(settings)]

    async def stop(self) -> None:
        """Stop gateway, relay and Orthanc."""
        try:
            await super().stop()
        finally:
            self._stack.close()
            self.orthanc.stop()

    async def hold(self, folder: Path, **how: Any) -> Served:
        """Make a study, put it into Orthanc, publish it."""
        study = make_study(folder, **how)
        await self.store(study)
        return await self.publish(study)

    async def store(self, study: GeneratedStudy, *numbers: int) -> None:
        """Put a study, or some instances of it, into Orthanc."""
        files = [study.instances[number].path for number in numbers] or list(study.files)
        await deferToThread(self.orthanc.load, files)

    async def remove(self, uid: str) -> None:
        """Remove a study or an instance from Orthanc."""

        def work() -> None:
            found: Any = self.orthanc.rest("POST", "/tools/find", _query(uid))
            (name,) = found
            level = "studies" if _query(uid)["Level"] == "Study" else "instances"
            self.orthanc.rest("DELETE", f"/{level}/{name}")

        def _query(uid: str) -> dict[str, Any]:
            for level, key in (("Study", "StudyInstanceUID"), ("Instance", "SOPInstanceUID")):
                query = {"Level": level, "Query": {key: uid}}
                if self.orthanc.rest("POST", "/tools/find", query):
                    return query
            raise AssertionError(f"{uid} is not in Orthanc")

        await deferToThread(work)

    async def restart_orthanc(self) -> None:
        """Start a killed Orthanc again, on what it holds; only behind the relay."""
        await deferToThread(self.orthanc.start)
        self.relay.orthanc = self.orthanc.http_port

    async def replaced(self, kos: str) -> str:
        """Wait until another KOS has taken the place of this one; return it."""
        query = "select sop_instance_uid from kos where state = 'published' and study_uid = "
        query += "(select study_uid from kos where sop_instance_uid = ?)"

        def newer() -> str:
            rows = self.database(query, kos)
            return str(rows[0][0]) if rows and rows[0][0] != kos else ""

        return str(await until(newer, what="another KOS"))

    async def idle(self) -> None:
        """Wait until nothing is delivered and nothing read."""

        async def free() -> bool:
            _, body = await self.stand.admin("/status")
            readings = json.loads(body)["sites"][0]["readings"]
            return not readings["used"] and await self.metric("drimbox_deliveries_running") == 0

        if self._relayed:
            self.relay.behaviour = honest
        await until(free, what="idle")
