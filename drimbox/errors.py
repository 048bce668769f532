"""The coded errors of the national specification, E001 to E1203 (requirements.md 3.2).

A use-case or a resource raises one of these; one place maps it: `audit` for the outcome description,
`wado` for the HTTP status and the `application/problem+json` body. `detail` is shown to operators and
peers, in French, and never carries patient data.
"""

from __future__ import annotations

from typing import ClassVar


class DrimboxError(Exception):
    """A failure with a code of the specification.

    `code` is the E-code, `title` its French text, `http_status` the status for image requests (None
    on the feed side). `retry` says whether the same work may succeed later without anybody's help.
    """

    code: ClassVar[str] = "E008"
    title: ClassVar[str] = "Autre erreur"
    http_status: ClassVar[int | None] = None
    retry: ClassVar[bool] = False

    def __init__(
        self, detail: str = "", *, status: int | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        #: Seconds for a Retry-After header, None for no header.
        self.retry_after = retry_after
        self._status = status

    @property
    def status(self) -> int:
        """HTTP status of this very error: the given one, else the class's, else 500."""
        return self._status or self.http_status or 500

    def __str__(self) -> str:
        return f"{self.code} - {self.title}" + (f" : {self.detail}" if self.detail else "")


# --- feed side (DB.SO.45) -------------------------------------------------------------------------


class FeedError(DrimboxError):
    """Base of the errors of KOS creation and DMP feeding; E008 when nothing more precise fits."""


class Parked(FeedError):
    """E008: the work on a row breaks again and again, and waits for somebody to look."""


class PatientMismatch(FeedError):
    code = "E001"
    title = "Production du KOS impossible : traits du patient incohérents"


class PacsCommunicationError(FeedError):
    code = "E003"
    title = "Production du KOS impossible : problème de communication avec le PACS"
    retry = True


class StudyNotInPacs(FeedError):
    code = "E004"
    title = "Production du KOS impossible : examen absent du PACS"


class ReportNotInterpretable(FeedError):
    code = "E005"
    title = "Production du KOS impossible : message ou compte rendu non interprétable"


class PatientNotInDmp(FeedError):
    code = "E006"
    title = "DMP : patient non disponible"


class PublicationError(FeedError):
    """E007; `detail` ends with the DMP's own error code and text."""

    code = "E007"
    title = "DMP : problème lors de la publication du KOS"


# --- image side (DB.SO.47) ------------------------------------------------------------------------


class ImageError(DrimboxError):
    """Base of the errors met while serving images; E1104 (500) when nothing more precise fits."""

    code = "E1104"
    title = "Autre erreur"
    http_status = 500


class KosUnknown(ImageError):
    code = "E1001"
    title = "KOS absent de la DRIMbox source"
    http_status = 404


class KosDepublished(ImageError):
    code = "E1002"
    title = "KOS dépublié ou examen indisponible"
    http_status = 410


class TooManyRequests(ImageError):
    code = "E1003"
    title = "Connexion refusée : nombre maximal de connexions simultanées atteint"
    http_status = 503


class PacsUnavailable(ImageError):
    code = "E1004"
    title = "Erreur de communication avec le PACS source"
    http_status = 502


class RetrieveTimeout(ImageError):
    code = "E1005"
    title = "Erreur de récupération des images : délai dépassé"
    http_status = 504


class ImageIdentityMismatch(ImageError):
    code = "E1006"
    title = "Identifiant patient différent entre l'archive locale et le PACS"
    http_status = 406


class PeerNotTrusted(ImageError):
    code = "E1101"
    title = "Échec d'établissement de la connexion TLS mutuelle"
    http_status = 403


class PeerNotListed(ImageError):
    code = "E1102"
    title = "DRIMbox consommatrice absente de la liste blanche"
    http_status = 401


class KosMismatch(ImageError):
    code = "E1103"
    title = "Identifiant du KOS de la requête différent de celui de la DRIMbox source"
    http_status = 404


class TokenMissing(ImageError):
    title = "Jeton d'accès absent"
    http_status = 401


class TokenInvalid(ImageError):
    title = "Jeton d'accès invalide"
    http_status = 403


class IntrospectionUnavailable(ImageError):
    title = "Vérification du jeton d'accès impossible : service indisponible"
    http_status = 502


class IntrospectionTimeout(ImageError):
    title = "Vérification du jeton d'accès impossible : délai dépassé"
    http_status = 504


class AuditUnavailable(ImageError):
    title = "Demande intraçable : journal d'audit indisponible"
    http_status = 503
    retry = True


class NotAcceptable(ImageError):
    title = "Aucune syntaxe de transfert acceptable"
    http_status = 406


class InstanceLevelUnsupported(ImageError):
    code = "E1105"
    title = "Requête au niveau instance non prise en charge"
    http_status = 415


class BadRequest(ImageError):
    """A request that is not well formed; the specification gives it no E-code of its own."""

    title = "Requête mal formée"
    http_status = 400


class NotServed(ImageError):
    """A resource this gateway does not offer (study level switched off, frames, QIDO ...)."""

    title = "Ressource non proposée"
    http_status = 404


class ServiceDisabled(ImageError):
    """Image access switched off: our own certificate is not in the whitelist (DB.CS.164), or we stop."""

    title = "Service momentanément indisponible"
    http_status = 503
