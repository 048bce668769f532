"""The link with each PACS: does it answer, does it list a study, do our AE titles get their images?

A pool of which the PACS knows three titles of four works, until four Consumers ask at once: so each title
is tried by a C-MOVE of its own, of the shortest series of a study that the PACS is known to hold. Images
for people come first: a title is tried while another stays free and nobody waits, and the trial ends when
somebody does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from drimbox.config import Config, DicomSettings, Pacs, Site
from drimbox.dicom.aetitles import Pool, Pools, TitleState
from drimbox.dicom.dimse import Status
from drimbox.dicom.moving import Abandoned, MoveReceiver, MoveResult
from drimbox.dicom.requestor import PacsBusy
from drimbox.doctor.findings import Finding, bad, doubtful, good, untried
from drimbox.errors import PacsCommunicationError, PacsUnavailable, RetrieveTimeout, TooManyRequests
from drimbox.model import Series, Study, new_uid
from drimbox.ports import ImageArchive, MoveRun
from drimbox.source.speedtest import Counter, Tally

#: Images of the longest series moved whole; of a longer one, a single image is.
_SHORT = 20
#: Seconds to wait until the pool has room, for an association, and between two looks.
_ROOM_WAIT, _ASSOCIATION_WAIT, _LOOK = 5.0, 5.0, 0.1
#: PS3.4 C.4.2.1.5: the destination is unknown to the PACS.
_UNKNOWN_DESTINATION = 0xA801


class Mover(Protocol):
    """Starts C-MOVEs to one AE title of ours (`dicom.retrieval.Mover`)."""

    def retrieval(self, pacs: Pacs, receiver: MoveReceiver, title: str = "") -> MoveRun:
        """Prepare one."""


@attrs.frozen
class PacsDoors:
    """What the trial of a PACS needs from outside."""

    archives: Callable[[Site], ImageArchive]
    #: Lists a study without asking for what C-FIND does not tell.
    find: Callable[[Pacs, str], Awaitable[Study | None]]
    #: None when nothing of ours listens for the images.
    mover: Mover | None
    pools: Pools
    #: Studies that a site was seen to hold.
    controls: Callable[[str], Awaitable[Sequence[str]]]
    clock: IReactorTime


async def try_site(config: Config, site: Site, doors: PacsDoors, study: str = "") -> list[Finding]:
    """Try everything of one site; `study` is the one to ask for, in place of those configured or seen."""
    archive = doors.archives(site)
    began = doors.clock.seconds()
    try:
        await archive.verify()
    except PacsBusy:
        return [untried("pacs-echo", site.archive, "toutes nos associations servent : il répond déjà")]
    except PacsCommunicationError as error:
        return [
            bad("pacs-echo", site.archive, error.detail or str(error), _unreachable(site, config.dicom))
        ]
    seconds = doors.clock.seconds() - began
    found = [good("pacs-echo", site.archive, f"répond en {1000 * seconds:.0f} ms")]
    controls = await _controls(config, site, doors, study)
    if site.pacs is None:
        return [*found, await _native(site, archive, controls)]
    return found + await _Trial(config, site.pacs, doors).run(controls)


async def _controls(config: Config, site: Site, doors: PacsDoors, study: str) -> list[str]:
    """Return the studies to ask for: the one asked for, else those configured, else those last seen."""
    if study:
        return [study]
    named = [site.resync.control_study, site.speedtest.study, config.wado.reference_study]
    configured = [uid for uid in named if uid is not None]
    return configured or list(await doors.controls(site.name))


async def _native(site: Site, archive: ImageArchive, controls: Sequence[str]) -> Finding:
    try:
        for uid in controls:
            if await archive.holds(uid):
                return good("pacs-find", site.archive, "tient l'examen témoin")
    except PacsCommunicationError as error:
        return bad(
            "pacs-find", site.archive, error.detail or str(error), "consulter le journal de l'archive"
        )
    return _no_control(site.archive) if not controls else _missing(site.archive, controls[0])


class _Trial:
    """The trial of one PACS that answers."""

    def __init__(self, config: Config, pacs: Pacs, doors: PacsDoors) -> None:
        self._port = config.dicom.port
        self._pacs = pacs
        self._doors = doors
        self._pool: Pool = doors.pools.by_pacs[pacs.name]

    async def run(self, controls: Sequence[str]) -> list[Finding]:
        """C-FIND, then a C-MOVE to each title."""
        name, study = self._pacs.name, None
        try:
            # Without a study to ask for, the question itself is tried.
            for uid in controls or [new_uid()]:
                study = await self._doors.find(self._pacs, uid)
                if study is not None and study.instance_count:
                    break
        except PacsCommunicationError as error:
            mend = f"vérifier que « {name} » autorise C-FIND à notre AE title appelant (dicom.ae_title)"
            return [bad("pacs-find", name, error.detail or str(error), mend)]
        if not controls:
            return [good("pacs-find", name, "répond à C-FIND"), _no_control(name)]
        if study is None or not study.instance_count:
            return [_missing(name, controls[0])]
        found = [good("pacs-find", name, f"examen témoin : {study.instance_count} image(s)")]
        series = min(
            (each for each in study.series if each.instances), key=lambda each: len(each.instances)
        )
        return found + await self._titles(study.study_uid, series)

    async def _titles(self, study_uid: str, series: Series) -> list[Finding]:
        if self._doors.mover is None:
            return [
                untried(
                    "pacs-move",
                    self._pacs.name,
                    f"le port DICOM {self._port} n'est pas à nous en ce moment",
                )
            ]
        found: list[Finding] = []
        silent = False
        for title in self._pacs.pool:
            if silent:
                found.append(
                    untried("pacs-move", self._subject(title), "le PACS n'a pas répondu au précédent")
                )
                continue
            finding, silent = await self._title(self._doors.mover, title, study_uid, series)
            found.append(finding)
        return found

    def _subject(self, title: str) -> str:
        return f"{self._pacs.name} vers {title}"

    async def _title(
        self, mover: Mover, title: str, study_uid: str, series: Series
    ) -> tuple[Finding, bool]:
        """Try one title; say too whether the PACS has become silent."""
        subject = self._subject(title)
        state = self._pool.titles[title].state
        if state is TitleState.QUARANTINED:
            mend = "attendre pacs.quarantine, puis recommencer ; le PACS n'a pas terminé un envoi"
            return doubtful("pacs-move", subject, "en quarantaine", mend), False
        if state is TitleState.LEASED or not await self._room():
            return untried("pacs-move", subject, "occupé par une délivrance : il sert déjà"), False
        due = [each.sop_instance_uid for each in series.instances]
        single = due[0] if len(due) > _SHORT else None
        tally = Tally()
        counter = Counter(self._doors.clock, {single} if single else set(due), tally)
        move = mover.retrieval(self._pacs, counter, title)
        watching = _Watching(self._doors.clock, self._pool, move)
        try:
            result = await move.run(
                study_uid, series.series_uid, wait=_ASSOCIATION_WAIT, instance_uid=single
            )
        except (Abandoned, TooManyRequests):
            return untried("pacs-move", subject, "laissé à une délivrance"), False
        except (PacsUnavailable, RetrieveTimeout) as error:
            return bad("pacs-move", subject, error.detail or str(error), self._no_images(title)), True
        finally:
            watching.stop()
        return self._judge(title, result, len(counter.missing), tally.images), False

    def _judge(self, title: str, result: MoveResult, missing: int, received: int) -> Finding:
        subject = self._subject(title)
        if result.status == _UNKNOWN_DESTINATION:
            return bad(
                "pacs-move",
                subject,
                "destination inconnue du PACS (0xA801)",
                f"déclarer dans le PACS l'AE title « {title} » à l'adresse de cette machine, "
                f"port {self._port}",
            )
        if missing or result.status not in (Status.SUCCESS, Status.WARNING):
            text = f"état 0x{result.status:04X}, {missing} image(s) non reçue(s)"
            return bad("pacs-move", subject, text, self._no_images(title))
        return good("pacs-move", subject, f"{received} image(s) reçue(s)")

    def _no_images(self, title: str) -> str:
        return (
            f"vérifier dans le PACS l'adresse et le port ({self._port}) de l'AE title « {title} », le "
            "pare-feu du PACS vers cette machine, et [site.pacs] store_ae_titles et addresses"
        )

    async def _room(self) -> bool:
        """Wait until another title than ours stays free and nobody waits; False when that does not come."""
        wanted = min(2, len(self._pool.titles))
        deadline = self._doors.clock.seconds() + _ROOM_WAIT
        while self._pool.waiting or self._pool.free < wanted:
            if self._doors.clock.seconds() >= deadline:
                return False
            pause: Deferred[None] = Deferred()
            self._doors.clock.callLater(_LOOK, pause.callback, None)
            await pause
        return True


class _Watching:
    """Gives a move up as soon as somebody waits for a title."""

    def __init__(self, clock: IReactorTime, pool: Pool, move: MoveRun) -> None:
        self._clock = clock
        self._pool = pool
        self._move = move
        self._timer: IDelayedCall = clock.callLater(_LOOK, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer.active():
            self._timer.cancel()

    def _look(self) -> None:
        if self._pool.waiting:
            self._move.abandon()
            return
        self._timer = self._clock.callLater(_LOOK, self._look)


def _unreachable(site: Site, ours: DicomSettings) -> str:
    if site.pacs is None:
        return "vérifier [site.native] url, l'utilisateur et son mot de passe, et que l'archive tourne"
    pacs = site.pacs
    return (
        f"vérifier l'adresse {pacs.host}:{pacs.port}, le pare-feu, et que ce PACS connaît l'AE title "
        f"« {ours.ae_title} » et s'appelle bien « {pacs.ae_title} »"
    )


def _no_control(name: str) -> Finding:
    return doubtful(
        "pacs-move",
        name,
        "aucun examen témoin : les AE titles du pool ne sont pas essayés",
        "écrire dans [site.resync] control_study l'examen que ce PACS gardera toujours, ou donner --study",
    )


def _missing(name: str, uid: str) -> Finding:
    return bad(
        "pacs-find",
        name,
        f"examen témoin {uid} absent",
        "vérifier que cet examen y est bien, et que l'AE title du PACS est celui de la bonne base",
    )
