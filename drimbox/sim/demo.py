"""`make demo`: the main job end to end, each step printed (in French: it is what a visitor sees).

A simulated PACS with a generated CT study, RIS, DMP and Pro Santé Connect around a real gateway process.
A report goes in, a KOS comes out in the DMP, the images of the study stream to a Consumer and are held
byte by byte against the PACS's, then three requests that must be refused get their code. `--once` ends
after the scenario, with a JSON summary as last line; else everything stays up for a look around.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from pydicom import dcmread
from twisted.internet import defer, task

from drimbox.sim.consumer import FetchResult
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.peers import free_port
from drimbox.sim.ris import SimAct, SimMessage, SimReport, build_message
from drimbox.sim.stand import LOOPBACK, STRANGER, GatewayFailed, PacsAddress, Stand
from drimbox.sim.studies import GeneratedStudy, make_study

POOL = ("DRIMBOX1", "DRIMBOX2", "DRIMBOX3", "DRIMBOX4")
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"


class StepFailed(Exception):
    """A step did not give what it must."""


def say(text: str) -> None:
    """Print one line at once."""
    click.echo(text)
    sys.stdout.flush()


def check(good: bool, what: str) -> None:
    """Raise `StepFailed` unless `good`."""
    if not good:
        raise StepFailed(what)


def dataset_digests(study: GeneratedStudy) -> dict[str, str]:
    """SHA-256 of each instance's data set as the PACS holds it, by SOPInstanceUID."""
    return dict(_digest(path.read_bytes()) for path in study.files)


def _digest(part10: bytes) -> tuple[str, str]:
    """SOPInstanceUID, and SHA-256 of everything behind the file meta information."""
    length = int.from_bytes(part10[140:144], "little")
    uid = str(dcmread(_Bytes(part10), stop_before_pixels=True).SOPInstanceUID)
    return uid, hashlib.sha256(memoryview(part10)[144 + length :]).hexdigest()


def _Bytes(data: bytes) -> Any:
    from io import BytesIO

    return BytesIO(data)


class Demo:
    """The scenario."""

    def __init__(self, reactor: Any, folder: Path, instances: int) -> None:
        self._reactor = reactor
        self._folder = folder
        self._instances = instances
        self.summary: dict[str, Any] = {"ok": False}

    async def start(self) -> None:
        """Bring everything up."""
        say(f"1. PACS simulé : étude CT de {self._instances} images (JPEG-LS sans perte)")
        self.study = make_study(
            self._folder / "study",
            instances=self._instances,
            rows=512,
            columns=512,
            transfer_syntax=JPEG_LS_LOSSLESS,
        )
        self.digests = dataset_digests(self.study)
        port = free_port()
        self.pacs = SimulatedPacs("PACS", destinations=dict.fromkeys(POOL, (LOOPBACK, port)))
        self.pacs.load(self.study)
        self.pacs.start()
        say("2. RIS, DMP, Pro Santé Connect simulés ; certificats et liste blanche de test")
        self.stand = Stand(
            self._folder / "stand",
            self._reactor,
            [PacsAddress("PACS", self.pacs.port, POOL)],
            dicom_port=port,
        )
        await self.stand.start()
        say(f"3. DRIMbox : twistd drimbox --config {self.stand.config}")
        await self.stand.start_gateway()
        say(
            f"   MLLP {self.stand.hl7_port}, DICOM {self.stand.dicom_port}, "
            f"WADO-RS (mTLS) {self.stand.wado_port}, administration {self.stand.admin_port}"
        )

    async def stop(self) -> None:
        """Bring everything down."""
        if hasattr(self, "stand"):
            await self.stand.stop()
        if hasattr(self, "pacs"):
            self.pacs.stop()

    async def play(self) -> None:
        """Play every step; `summary` tells the result."""
        kos = await self._report()
        await self._images(kos)
        await self._refusals(kos)
        self.summary["ok"] = True

    async def _report(self) -> str:
        act = SimAct(study_uid=self.study.study_uid, modalities=("CT",), description="Scanner thoracique")
        message = build_message(SimReport(acts=(act,)), SimMessage())
        say(f"4. Le RIS envoie un compte rendu ORU^R01 ({len(message)} octets)")
        ack = await self.stand.send(message)
        say(f"   acquittement {ack.code}")
        check(ack.code == "AA", "le compte rendu n'a pas été acquitté")
        published = await self.stand.wait_published(1)
        check(len(published) == 1, "le KOS n'est pas arrivé dans le DMP")
        say("5. Le DMP détient maintenant :")
        for document in self.stand.dmp.state()["documents"]:
            say(f"   {document['mimeType']:<18} {document['size']:>6} octets  {document['uniqueId']}")
        self.summary["kos_published"] = len(published)
        return published[0]

    async def _images(self, kos: str) -> None:
        series = self.study.series[0].series_uid
        say("6. Une DRIMbox consommatrice demande la série (WADO-RS, TLS mutuel)")
        result = await self.stand.fetch(self.study.study_uid, series, kos)
        check(result.status == 200, f"réponse {result.status} {result.problem or ''}")
        check(result.complete, f"réponse incomplète : {result.error}")
        received = dict(_digest(part.content) for part in result.parts if part.content is not None)
        identical = received == self.digests
        say(
            f"   {len(result.parts)} images, {result.received / 1e6:.1f} Mo ; première en "
            f"{result.t_first_part or 0:.3f} s, étude en {result.t_total:.3f} s"
        )
        say(f"   octets identiques à ceux du PACS : {'oui' if identical else 'NON'}")
        check(identical, "les images reçues diffèrent de celles du PACS")
        self.summary.update(
            instances=len(result.parts),
            bytes_identical=identical,
            first_image_s=round(result.t_first_part or 0.0, 4),
            study_s=round(result.t_total, 4),
        )

    async def _refusals(self, kos: str) -> None:
        study, series = self.study.study_uid, self.study.series[0].series_uid
        say("7. Ce qui doit être refusé :")
        refusals = {
            "token": await self.stand.fetch(study, series, kos, token="jeton-inconnu"),
            "kos": await self.stand.fetch(study, series, kos + "9"),
            "whitelist": await self.stand.fetch(
                study, series, kos, certificate=self.stand.consumer(STRANGER)
            ),
        }
        names = {
            "token": "jeton refusé",
            "kos": "identifiant de KOS erroné",
            "whitelist": "certificat absent de la liste blanche",
        }
        for key, result in refusals.items():
            say(f"   {names[key]:<38} {result.status} {_code(result)}")
        expected = {"token": 403, "kos": 404, "whitelist": 401}
        statuses = {key: result.status for key, result in refusals.items()}
        self.summary["refusals"] = statuses
        check(statuses == expected, f"refus attendus {expected}, obtenus {statuses}")


def _code(result: FetchResult) -> str:
    return str((result.problem or {}).get("code", ""))


async def run(reactor: Any, *, once: bool, instances: int) -> bool:
    """Play the scenario; return whether every step gave what it must."""
    folder = Path(tempfile.mkdtemp(prefix="drimbox-demo-"))
    demo = Demo(reactor, folder, instances)
    good = False
    try:
        await demo.start()
        await demo.play()
        good = True
        if not once:
            say("Tout reste en marche ; Ctrl-C pour arrêter. Pour regarder :")
            say(f"   .venv/bin/drimbox status --config {demo.stand.config}")
            say(f"   tail -f {demo.stand.log}")
            await _forever(reactor)
    except (StepFailed, GatewayFailed) as failure:
        say(f"ÉCHEC : {failure}")
        demo.summary["error"] = str(failure)
    finally:
        await demo.stop()
        if good:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"Traces conservées dans {folder}")
    if once:
        say(json.dumps(demo.summary, ensure_ascii=False))
    return good


async def _forever(reactor: Any) -> None:
    stopped: defer.Deferred[None] = defer.Deferred()
    reactor.addSystemEventTrigger("before", "shutdown", stopped.callback, None)
    await stopped


@click.command()
@click.option("--once", is_flag=True, help="S'arrêter après le scénario, avec un résumé JSON.")
@click.option("--instances", default=200, show_default=True, help="Nombre d'images de l'étude.")
def main(once: bool, instances: int) -> None:
    """Jouer la tâche principale de bout en bout, sur un hôpital simulé."""

    def start(reactor: Any) -> defer.Deferred[None]:
        work = defer.Deferred.fromCoroutine(run(reactor, once=once, instances=instances))
        return work.addCallback(_exit)

    task.react(start)


def _exit(good: bool) -> None:
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
