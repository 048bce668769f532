"""Keeps the TLS doors up to date while they are open: certificates replaced on disk, revocation lists.

A certificate renewed by its files alone must count without a restart, and without an end to what is being
delivered: a reload makes contexts for the connections to come, those that are open keep theirs. A pair
that cannot be used changes nothing and is told. And nobody should learn of an expiry from the refusals of
others: the administrator is told 60, 30 and 7 days before, and when it has happened.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import attrs
from cryptography import x509
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import Certificate, Config
from drimbox.keypairs import read_pair
from drimbox.ports import OutageNotices
from drimbox.trust.certificates import CertificateUnusable, read_leaf
from drimbox.trust.contexts import ServerContexts
from drimbox.trust.listkeeper import write_whole
from drimbox.trust.whitelist import WhitelistHolder

#: Days before an expiry at which it is told.
STEPS = (60, 30, 7, 0)
MEMORY = "expiries.json"
_CODE = "CERTIFICAT"


@attrs.frozen
class Expiry:
    """One certificate of ours."""

    #: `site1 WADO`, `1470003641 signature`: what it is for, in French.
    label: str
    path: Path
    #: None when the file cannot be read.
    expires: datetime | None
    subject: str = ""


class TlsKeeper:
    """Reloads the contexts of the doors, and watches the expiry of every certificate of ours.

    `crls` returns the revocation lists held; `noted` writes down in the audit trail that certificates were
    reloaded.
    """

    log = Logger()

    def __init__(
        self,
        config: Config,
        contexts: ServerContexts,
        holder: WhitelistHolder,
        notices: OutageNotices,
        *,
        crls: Callable[[], Sequence[x509.CertificateRevocationList]],
        now: Callable[[], datetime],
        in_thread: Callable[[Callable[[], object]], Awaitable[object]],
        noted: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._config = config
        self._contexts = contexts
        self._holder = holder
        self._notices = notices
        self._crls = crls
        self._now = now
        self._in_thread = in_thread
        self._noted = noted
        self._others: list[tuple[tuple[Path, ...], Callable[[], None]]] = []
        self._stamps = self._look()
        self._memory = config.drimbox.state_dir / MEMORY

    def watch(self, files: Iterable[Path], reload: Callable[[], None]) -> None:
        """Have `reload` called, off the reactor thread, whenever one of `files` changes, and on demand.

        It raises `CertificateUnusable`, and then leaves everything as it was.
        """
        self._others.append((tuple(files), reload))
        self._stamps = self._look()

    async def reload(self) -> str:
        """Read every file again; return what is not as its files say, empty for nothing."""
        crls = tuple(self._crls())
        doors = await self._read(lambda: self._contexts.reload(crls))
        problems = [doors, *[await self._read(reload) for _, reload in self._others]]
        problems += [
            await self._read(partial(_try, label, pair)) for label, pair in _read_anew(self._config)
        ]
        problem = " ; ".join(each for each in problems if each)
        if problem:
            text = f"Certificats non rechargés, les précédents restent s'il y en a : {problem}"
            await self._notices.post(key="certificates", code=_CODE, text=text)
        else:
            await self._notices.resolve("certificates")
        if self._holder.current is not None and not doors:
            # Another certificate may have another CN or OU (DB.CS.164).
            self._holder.install(self._holder.current)
        return problem

    async def _read(self, work: Callable[[], None]) -> str:
        try:
            await self._in_thread(work)
        except CertificateUnusable as error:
            return str(error)
        return ""

    async def look(self) -> None:
        """Reload when a file of the doors has changed on disk."""
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        problem = await self.reload()
        self.log.info("TLS files changed: {problem}", problem=problem or "reloaded")
        await self._noted("Rechargement des certificats TLS", problem or "effectué")

    def _look(self) -> tuple[tuple[str, int, int], ...]:
        """Return what tells one state of the files from another."""
        trust = self._config.trust
        paths = {trust.consumer_roots}
        if trust.consumer_issuer_certificates is not None:
            paths.add(trust.consumer_issuer_certificates)
        for site in self._config.sites:
            for pair in (site.wado_certificate, site.viewer_certificate):
                if pair is not None:
                    paths.update(pair.files)
        for files, _ in self._others:
            paths.update(files)
        return tuple(_stamp(path) for path in sorted(paths))

    # -- expiry ------------------------------------------------------------------------------------

    def expiries(self) -> list[Expiry]:
        """Return every certificate of ours with its end."""
        return [_expiry(label, pair) for label, pair in own_pairs(self._config)]

    async def check_expiries(self) -> None:
        """Tell of each certificate once at each step before its end, and of its end."""
        found = await self._in_thread(self.expiries)
        assert isinstance(found, list)
        signer = self._holder.current.signer if self._holder.current is not None else None
        if signer is not None:
            found = [*found, Expiry("signataire de la liste blanche", Path(), signer.not_valid_after_utc)]
        told = _read(self._memory)
        fresh: dict[str, list[str | int]] = {}
        for each in found:
            if each.expires is None:
                continue
            metrics.CERTIFICATE_EXPIRES.labels(each.label).set(each.expires.timestamp())
            step = _step(each.expires - self._now())
            key = f"expiry-{each.label}"
            end = each.expires.isoformat()
            if step is None:
                await self._notices.resolve(key)
                continue
            fresh[each.label] = [end, step]
            if told.get(each.label) != [end, step]:
                await self._notices.post(key=key, code=_CODE, text=_words(each, self._now()))
        if fresh != told:
            text = json.dumps(fresh).encode("utf-8")
            try:
                await self._in_thread(lambda: write_whole(self._memory, text))
            except OSError as error:
                # It is told once more at the next start: that harms nobody.
                self.log.warn("memory of expiries not kept: {why}", why=error.strerror)


def own_pairs(config: Config) -> Iterator[tuple[str, Certificate]]:
    """Yield each pair of ours with what it is for, in French."""
    for site in config.sites:
        yield f"{site.name} WADO", site.wado_certificate
        if site.viewer_certificate is not None:
            yield f"{site.name} visionneuse", site.viewer_certificate
    yield from _read_anew(config)
    if config.hl7.tls is not None:
        yield "HL7 (MLLP)", config.hl7.tls.certificate
    if config.admin.certificate is not None:
        yield "administration", config.admin.certificate
    if config.psc.certificate is not None:
        yield "proxy e-Santé", config.psc.certificate


def _read_anew(config: Config) -> Iterator[tuple[str, Certificate]]:
    """Yield those that are looked at each time they serve: one that cannot be read stays in no use."""
    for structure in config.structures:
        yield f"{structure.id} authentification", structure.authentication
        yield f"{structure.id} signature", structure.signature
    if config.audit.atna is not None:
        yield "dépôt d'audit", config.audit.atna.client


def _try(label: str, files: Certificate) -> None:
    try:
        fits = read_pair(files).fits
    except CertificateUnusable as error:
        raise CertificateUnusable(f"{label} : {error}") from error
    if not fits:
        raise CertificateUnusable(f"{label} : la clé n'est pas celle du certificat")


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (str(path), 0, 0)
    return (str(path), stat.st_mtime_ns, stat.st_size)


def _expiry(label: str, pair: Certificate) -> Expiry:
    path = next(iter(pair.files), Path())
    try:
        leaf = read_leaf(pair)
        return Expiry(label, path, leaf.not_valid_after_utc, leaf.subject.rfc4514_string())
    except (CertificateUnusable, ValueError):
        return Expiry(label, path, None)


def _step(left: timedelta) -> int | None:
    """Return the last step passed, None while more than the first is left."""
    return next((step for step in sorted(STEPS) if left <= timedelta(days=step)), None)


def _words(expiry: Expiry, now: datetime) -> str:
    assert expiry.expires is not None
    date = f"{expiry.expires:%d/%m/%Y}"
    days = (expiry.expires - now).days
    if expiry.expires <= now:
        return f"Certificat « {expiry.label} » expiré depuis le {date}"
    return f"Certificat « {expiry.label} » : expire le {date}, dans {days} jour{'s' if days > 1 else ''}"


def _read(path: Path) -> dict[str, list[str | int]]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
