"""Reception of a message: recognise the RIS, check what is checked at the door, store, acknowledge.

    RIS ──message──▶ receive ──▶ examine (in a thread): MSH → which RIS? → HL7, base64, XML readable?
                        │ refused: AE, notice, audit                 │ good
                        ◀── AR ── store failed ◀── Inbox.add ◀───────┘
                        ◀── AA ── committed

Nothing is acknowledged before it is safe: `AA` is only ever said after `Inbox.add` returned, and means that
the message is ours from now on (interfaces.md 1.1). A report that can be read but lacks values is
stored like any other: the feed turns it into E005 (decisions.md). So is a deletion. What the message wants
is decided later, from the stored bytes.
"""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Awaitable, Callable, Collection
from contextlib import nullcontext

import attrs
from twisted.logger import Logger

from drimbox.cda.header import read_header
from drimbox.config import Config, Ris
from drimbox.hl7.ack import acknowledge
from drimbox.hl7.fields import Message
from drimbox.hl7.message import read_message
from drimbox.hl7.refusal import INTERNAL_ERROR, Hl7Refused
from drimbox.metrics import HL7_MESSAGES
from drimbox.model import ReportMessage, StudyChange
from drimbox.networks import within
from drimbox.ports import Clock, Inbox, InThread, Notices
from drimbox.source.precedence import Precedence
from drimbox.source.unreadable import Seen
from drimbox.xml import XmlRefused

log = Logger()

#: Names of a stranger's certificate that the administrator is told.
_NAMES_TOLD = 4


@attrs.frozen
class Examination:
    """What the door learnt of a message it lets in."""

    ris: str
    control_id: str
    #: English, for the log, without patient data.
    warnings: tuple[str, ...]


class RisRegister:
    """The systems that may send reports, by what they announce, where they call from and what
    certificate they show (DB.SO.04).
    """

    def __init__(self, systems: tuple[Ris, ...]) -> None:
        # The most precise description first: one that names nothing must not hide one that does.
        self._systems = sorted(systems, key=_precision, reverse=True)
        self._networks = {
            ris.name: [ipaddress.ip_network(address, strict=False) for address in ris.addresses]
            for ris in systems
        }

    def find(self, application: str, facility: str, peer: str, shown: Collection[str] = ()) -> Ris | None:
        """Return the RIS that announces MSH-3 `application` and MSH-4 `facility` from address `peer`.

        `shown` is the names its verified certificate bears, case folded.
        """
        for ris in self._systems:
            if (
                ris.sending_application in (None, application)
                and ris.sending_facility in (None, facility)
                and self._calls_from(ris, peer)
                and _shows(ris, shown)
            ):
                return ris
        return None

    def knows(self, address: str) -> bool:
        """Say whether some RIS may call from there."""
        return any(self._calls_from(ris, address) for ris in self._systems)

    def _calls_from(self, ris: Ris, peer: str) -> bool:
        return not ris.addresses or within(peer, self._networks[ris.name])


def _shows(ris: Ris, shown: Collection[str]) -> bool:
    return not ris.certificate_names or any(name.casefold() in shown for name in ris.certificate_names)


def _precision(ris: Ris) -> int:
    return sum(
        (
            ris.sending_application is not None,
            ris.sending_facility is not None,
            bool(ris.addresses),
            bool(ris.certificate_names),
        )
    )


def _later() -> Hl7Refused:
    """Return the answer to what cannot be kept now: the sender keeps it, and sends it again."""
    return Hl7Refused("AR", "207", "enregistrement impossible, renvoyer le message plus tard", "", "906")


async def _nobody(seen: Seen, peer: str, refusal: Hl7Refused) -> None:
    """Nobody wants to know."""


class Reception:
    """Takes messages about reports and studies; a `drimbox.hl7.server.Receiver`.

    `in_thread` runs the reading of a message (up to some tenths of a second for 20 MB) off the
    reactor thread. `stored` is called after each commit, to wake the feed, which `precedence` holds back
    meanwhile.
    """

    def __init__(
        self,
        config: Config,
        inbox: Inbox,
        notices: Notices,
        clock: Clock,
        in_thread: InThread,
        *,
        stored: Callable[[], None] = lambda: None,
        precedence: Precedence | None = None,
        refused: Callable[[Seen, str, Hl7Refused], Awaitable[None]] = _nobody,
    ) -> None:
        """`refused` is told of each report that is refused, with the address it came from."""
        self._settings = config.hl7
        #: Who may send.
        self.register = RisRegister(config.ris)
        self._inbox = inbox
        self._notices = notices
        self._clock = clock
        self._in_thread = in_thread
        self._stored = stored
        self._precedence = precedence
        self._refused = refused

    async def receive(self, raw: bytes, peer: str, shown: Collection[str] = ()) -> bytes:
        """Take a message and return its acknowledgement (DB.SO.03, DB.SO.11, DB.SO.141).

        `raw` is unframed, `peer` the address it came from, `shown` the names of the certificate verified
        on the connection. `AA` once it is committed; `AE` for what
        interfaces.md 1.5 refuses and for an unknown sender; `AR` when it cannot be stored now. Never
        raises.
        """
        with self._precedence.message() if self._precedence else nullcontext():
            return await self._receive(raw, peer, shown)

    async def _receive(self, raw: bytes, peer: str, shown: Collection[str]) -> bytes:
        seen = Seen()
        try:
            found = await self._in_thread(lambda: self._examine(raw, peer, shown, seen))
            await self._store(raw, peer, found)
        except Hl7Refused as refusal:
            log.warn(
                "HL7 message from {ris} at {peer} refused: {refusal}",
                ris=seen.ris,
                peer=peer,
                refusal=refusal,
            )
            answer = await self._tell(refusal, seen, peer) if refusal.ack_code == "AE" else refusal
            return self._answer(raw, seen.ris, answer.ack_code, answer)
        except Exception:
            # Our bug: the sender keeps the message and sends it again, so nothing is lost by it.
            log.failure("HL7 reception failed for {ris} at {peer}", ris=seen.ris, peer=peer)
            return self._answer(raw, seen.ris, "AR", INTERNAL_ERROR)
        for warning in found.warnings:
            log.info(
                "HL7 message {id} of {ris}: {warning}", id=found.control_id, ris=seen.ris, warning=warning
            )
        return self._answer(raw, seen.ris, "AA")

    async def _tell(self, refusal: Hl7Refused, seen: Seen, peer: str) -> Hl7Refused:
        """Tell administrator and auditor of a message that is wrong; return what to answer."""
        await self._warn(refusal, seen.ris, peer)
        if seen.reports:
            try:
                await self._refused(seen, peer, refusal)
            except Exception:
                log.failure("refused report of {ris} not audited", ris=seen.ris)
                return _later()
        return refusal

    def _examine(self, raw: bytes, peer: str, shown: Collection[str], seen: Seen) -> Examination:
        """Read the message as far as reception must; `seen` gets what is known as soon as it is."""

        def recognise(message: Message) -> None:
            application = message.get(message.msh, 3)
            ris = self.register.find(application, message.get(message.msh, 4), peer, shown)
            if ris is None:
                raise UnknownSender(application, shown)
            seen.ris, seen.trigger = ris.name, message.get(message.msh, 9)

        message = read_message(raw, on_header=recognise)
        if isinstance(message, StudyChange):
            return Examination(seen.ris, message.control_id, ())
        seen.message = message
        return Examination(seen.ris, message.control_id, _check_document(message))

    async def _store(self, raw: bytes, peer: str, found: Examination) -> None:
        try:
            await self._inbox.add(ris=found.ris, peer=peer, control_id=found.control_id, raw=raw)
        except Exception:
            log.failure("HL7 message of {ris} could not be stored", ris=found.ris)
            raise _later() from None
        try:
            self._stored()
        except Exception:
            log.failure("waking the feed failed; it will find the message by itself")

    async def _warn(self, refusal: Hl7Refused, name: str, peer: str) -> None:
        if isinstance(refusal, UnknownSender):
            key, code = f"hl7-sender:{peer}", "E008"
            text = (
                f"Message HL7 refusé : l'émetteur {refusal.application} à l'adresse {peer}{refusal.shown} "
                "ne correspond à aucun [[ris]] de la configuration (MSH-3, MSH-4, adresse, certificat)."
            )
        else:
            key, code = f"hl7-refused:{name}:{refusal.err_code}", "E005"
            text = f"Message HL7 du RIS {name} refusé (AE {refusal.err_code}) : {refusal.err_text}."
        try:
            await self._notices.post(key=key, code=code, text=text)
        except Exception:
            # The sender must get its answer even when the notice cannot be kept.
            log.failure("notice lost")

    def _answer(self, raw: bytes, ris: str, code: str, refusal: Hl7Refused | None = None) -> bytes:
        HL7_MESSAGES.labels(ris, code).inc()
        return acknowledge(
            raw,
            code,
            now=self._clock.now(),
            control_id=uuid.uuid4().hex[:20],
            application=self._settings.application,
            facility=self._settings.facility,
            refusals=[refusal] if refusal else [],
        )


class UnknownSender(Hl7Refused):
    """MSH-3, MSH-4, the address and the certificate fit no `[[ris]]`."""

    def __init__(self, application: str, shown: Collection[str] = ()) -> None:
        super().__init__(
            "AE",
            "207",
            "émetteur inconnu : MSH-3, MSH-4, adresse ou certificat ne correspond à aucun RIS configuré",
            "MSH^1^3",
            "906",
        )
        #: MSH-3, fit to be shown.
        self.application = _quoted(application) or "(MSH-3 vide)"
        #: What certificate it showed, to go behind its address; nothing when it showed none.
        names = ", ".join(filter(None, map(_quoted, sorted(shown)[:_NAMES_TOLD])))
        self.shown = f" (certificat {names})" if names else ""


def _quoted(text: str) -> str:
    """Make what a stranger wrote fit to be shown; nothing when nothing of it can be."""
    printable = "".join(char for char in text if char.isprintable())
    return f"« {printable[:64]} »" if printable else ""


def _check_document(message: ReportMessage) -> tuple[str, ...]:
    """Refuse a document that is no readable CDA (AE 102); return what is odd in a readable one."""
    try:
        header = read_header(message.document)
    except XmlRefused:
        raise Hl7Refused(
            "AE", "102", "le compte rendu n'est pas un document CDA lisible (XML)", "OBX^1^5"
        ) from None
    warnings = list(header.warnings)
    if message.announced_id and message.announced_id != header.document_id:
        warnings.append("TXA-12 differs from the document id of the report, which is used")
    if message.announced_parent and message.announced_parent != (header.replaces or ""):
        warnings.append("TXA-13 differs from the parent document of the report")
    return tuple(warnings)
