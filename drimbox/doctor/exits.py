"""What leaves for others than the nation: the notices (mail, webhook) and the audit trail (ATNA).

Each link is tried as it is used, up to the point where something would be sent: the mail relay is asked for
everything but DATA, the webhook's server and the audit repository for their handshake. A test message goes
by mail and webhook when the operator wants one.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from drimbox.audit.link import AtnaLink
from drimbox.config import AtnaSettings, Config, MailSettings, WebhookSettings
from drimbox.doctor.findings import Finding, bad, doubtful, good
from drimbox.notify.channel import NotDelivered
from drimbox.notify.mail import MailChannel
from drimbox.notify.mailtrial import MailTrial, Stage
from drimbox.notify.webhook import WebhookChannel
from drimbox.ports import BatchNotDelivered, Clock, InThread
from drimbox.secretfile import SecretUnusable
from drimbox.source.notifying import Channel, trial_digest
from drimbox.trust.ways import Ways

#: What to do about a relay, by how far it came.
_MAIL = {
    Stage.FILES: "remettre ce fichier, lisible du service",
    Stage.GREETING: "vérifier notifications.mail host, port et security, le pare-feu, et roots "
    "(autorité du certificat du relais)",
    Stage.LOGIN: "vérifier notifications.mail user et le mot de passe de password_file",
    Stage.SENDER: "vérifier notifications.mail sender : le relais n'accepte pas cet expéditeur",
    Stage.RECIPIENTS: "vérifier notifications.mail recipients, et que le relais écrit à ces adresses",
}
_WEBHOOK = "vérifier notifications.webhook url, le pare-feu ou le proxy, roots et token_file"
_ATNA = (
    "vérifier audit.atna host, port, le pare-feu, roots, et que le dépôt connaît l'autorité de notre "
    "certificat client ; rien n'est perdu : les événements attendent"
)


class Exits:
    """Tries them, each within its own time-out; with `send`, a test message leaves where one can."""

    def __init__(
        self, config: Config, reactor: Any, clock: Clock, in_thread: InThread, *, send: bool = False
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._clock = clock
        self._in_thread = in_thread
        self._send = send

    async def mail(self, settings: MailSettings) -> list[Finding]:
        """Try the mail relay: certificate, password, sender, recipients."""
        subject = f"{settings.host}:{settings.port}"
        trial = MailTrial(settings, self._reactor, self._in_thread)
        try:
            refused = await trial.try_link()
        except NotDelivered as error:
            return [bad("mail", subject, str(error), _MAIL[trial.stage])]
        if len(refused) == len(settings.recipients):
            text = "tous les destinataires sont refusés : " + " ; ".join(refused)
            return [bad("mail", subject, text, _MAIL[Stage.RECIPIENTS])]
        if refused:
            text = "destinataires refusés : " + " ; ".join(refused)
            found = doubtful("mail", subject, text, _MAIL[Stage.RECIPIENTS])
        else:
            found = good("mail", subject, _said(settings))
        channel = MailChannel(settings, self._reactor, self._in_thread)
        return [found, *await self._message("mail", subject, channel, _MAIL[Stage.RECIPIENTS])]

    async def webhook(self, settings: WebhookSettings) -> list[Finding]:
        """Try the server of the webhook: address, name, authority."""
        # Never the path: many a service puts the secret there.
        subject = urlsplit(settings.url).netloc.rpartition("@")[2]
        try:
            ways = await self._in_thread(lambda: Ways(self._reactor, self._config.proxy))
            channel = WebhookChannel(settings, ways, self._in_thread)
            await channel.try_link()
        except (NotDelivered, SecretUnusable) as error:
            return [bad("webhook", subject, str(error), _WEBHOOK)]
        found = good("webhook", subject, "négociation TLS établie, certificat vérifié")
        return [found, *await self._message("webhook", subject, channel, _WEBHOOK)]

    async def atna(self, settings: AtnaSettings) -> list[Finding]:
        """Try the audit repository: a session with our certificate, and no event in it."""
        subject = f"{settings.host}:{settings.port}"
        try:
            await AtnaLink(settings, self._reactor, self._in_thread).deliver([])
        except BatchNotDelivered as error:
            return [bad("atna", subject, str(error), _ATNA)]
        return [good("atna", subject, "session TLS mutuelle ouverte et fermée dans les règles")]

    async def _message(self, check: str, subject: str, channel: Channel, mend: str) -> list[Finding]:
        """Send a message that says it is a test, if one is wanted."""
        if not self._send:
            return []
        digest = trial_digest(self._config.drimbox, channel.name, self._clock.now())
        try:
            remark = await channel.send(digest)
        except NotDelivered as error:
            return [bad(check, subject, f"message d'essai non envoyé : {error}", mend)]
        if remark:
            return [doubtful(check, subject, f"message d'essai envoyé ; {remark}", mend)]
        return [good(check, subject, "message d'essai envoyé")]


def _said(settings: MailSettings) -> str:
    how = {"starttls": "STARTTLS, certificat vérifié", "tls": "TLS, certificat vérifié", "none": "en clair"}
    login = ", mot de passe accepté" if settings.user is not None else ""
    return f"{how[settings.security]}{login} ; expéditeur et destinataires acceptés"
