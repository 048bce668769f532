"""The machine: disks, clock, and the certificates it holds. Blocks: run in a thread."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from drimbox import backupfiles
from drimbox.config import Certificate, Config
from drimbox.configfile.paths import EXPIRY_NOTICE
from drimbox.configfile.rules import amount
from drimbox.doctor.findings import Finding, bad, doubtful, good, untried
from drimbox.keypairs import CertificateUnusable, read_pair
from drimbox.systemerrors import system_reason
from drimbox.trust.tlskeeper import own_pairs

#: Part of the files that a file system can hold which should stay free.
_FREE_FILES = 0.01
#: A nightly backup is older than that only when one has failed.
_BACKUP_AGE = timedelta(hours=36)
#: What the kernel answers when nothing keeps its clock right (adjtimex(2)), and the size of what it fills.
_TIME_ERROR, _TIMEX_BYTES = 5, 208


def disks(config: Config) -> list[Finding]:
    """Look at the free space of every folder we write to, and whether we may."""
    folders = {config.drimbox.state_dir}
    if config.cache.enabled and config.cache.folder is not None:
        folders.add(config.cache.folder)
    if config.log.file is not None:
        folders.add(config.log.file.parent)
    return [_disk(folder, config) for folder in sorted(folders)]


def _disk(folder: Path, config: Config) -> Finding:
    subject, least = str(folder), config.doctor.min_free
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"essai")
            trial.flush()
            os.fsync(trial.fileno())
        stat = os.statvfs(folder)
    except OSError as error:
        return bad(
            "disk",
            subject,
            f"écriture impossible ({system_reason(error)})",
            "vérifier que ce dossier existe, appartient à l'utilisateur du service et n'est pas plein",
        )
    free = stat.f_bavail * stat.f_frsize
    seen = f"{amount(free >> 20 << 20)} libres"
    more = "libérer de la place ou agrandir ce disque"
    if free < least:
        return bad("disk", subject, f"{seen}, moins que doctor.min_free ({amount(least)})", more)
    if stat.f_files and stat.f_favail < _FREE_FILES * stat.f_files:
        return bad("disk", subject, "presque plus de fichiers disponibles (inodes)", more)
    spool = config.wado.total_spool
    if folder == config.drimbox.state_dir and free < spool:
        return doubtful("disk", subject, f"{seen}, moins que wado.total_spool ({amount(spool)})", more)
    return good("disk", subject, seen)


def backups(config: Config, now: datetime) -> list[Finding]:
    """Look for the newest backup in the folder of `[backup]`."""
    folder = backupfiles.expected_in(config)
    if folder is None:
        return []
    subject = str(folder)
    try:
        made = backupfiles.newest(folder, config.drimbox.system_id)
    except OSError as error:
        mend = "vérifier que ce dossier existe, est monté et ouvert au compte du service"
        return [bad("backup", subject, f"illisible ({system_reason(error)})", mend)]
    mend = "lancer « drimbox backup », et voir le travail qui doit le faire chaque nuit"
    if made is None:
        return [doubtful("backup", subject, "aucune sauvegarde", mend)]
    seen = f"la dernière est du {made.astimezone():%d/%m/%Y à %H:%M}"
    if now - made < _BACKUP_AGE:
        return [good("backup", subject, seen)]
    return [doubtful("backup", subject, seen, mend)]


def synchronised() -> Finding:
    """Ask the kernel whether something keeps its clock right."""
    subject = "synchronisation"
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (AttributeError, OSError):
        state = -1
    if state < 0:
        return untried("clock", subject, "le système ne dit pas si son horloge est synchronisée")
    if state == _TIME_ERROR:
        return doubtful(
            "clock",
            subject,
            "rien ne tient l'horloge de cette machine à l'heure",
            "activer chrony ou systemd-timesyncd vers le serveur de temps de l'établissement",
        )
    return good("clock", subject, "horloge tenue à l'heure par le système")


def offset(served: datetime, here: datetime, most: float, subject: str) -> Finding:
    """Compare our clock with what a server's Date says; `most` is in seconds.

    A Date has no part of a second, so that a second of difference says nothing.
    """
    seconds = (here - served).total_seconds()
    if abs(seconds) <= most + 1.0:
        return good("clock", subject, "même heure que ce serveur, à la seconde près")
    way = "avance" if seconds > 0 else "retarde"
    return bad(
        "clock",
        subject,
        f"notre horloge {way} de {abs(seconds):.0f} s sur ce serveur",
        "mettre l'horloge à l'heure : jetons et signatures sont refusés dès que l'écart est grand "
        "(psc.clock_skew)",
    )


def certificates(config: Config, now: datetime) -> list[Finding]:
    """Look at every pair we own: readable, key and certificate of one another, dates."""
    return [_pair(label, pair, now) for label, pair in own_pairs(config)]


def _pair(label: str, files: Certificate, now: datetime) -> Finding:
    try:
        pair = read_pair(files)
    except CertificateUnusable as error:
        return bad(
            "certificate", label, str(error), "remettre le certificat et sa clé, lisibles du service"
        )
    if not pair.fits:
        return bad(
            "certificate",
            label,
            f"{files.key} n'est pas la clé de {files.certificate}",
            "donner la clé du premier certificat du fichier",
        )
    return _dates(
        label, [each.not_valid_after_utc for each in pair.chain], pair.chain[0].not_valid_before_utc, now
    )


def _dates(label: str, ends: Sequence[datetime], start: datetime, now: datetime) -> Finding:
    end = min(ends)
    if now < start:
        return bad(
            "certificate", label, f"valable seulement à partir du {start:%d/%m/%Y}", "vérifier l'horloge"
        )
    if now >= end:
        return bad(
            "certificate", label, f"expiré le {end:%d/%m/%Y}", "le renouveler, puis « certificates reload »"
        )
    if end - now < EXPIRY_NOTICE:
        days = (end - now) // timedelta(days=1)
        return doubtful("certificate", label, f"expire dans {days} jours", "demander son renouvellement")
    return good("certificate", label, f"valable jusqu'au {end:%d/%m/%Y}")
