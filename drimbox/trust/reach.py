"""Why a server could not be reached, in French: the same words wherever we call somebody.

The text of an error nobody knows is never repeated: it may quote what was sent.
"""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectError, ConnectionRefusedError, DNSLookupError, NoRouteError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.web.client import RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived

from drimbox.proxyconnect import ProxyFailed
from drimbox.secretfile import SecretUnusable
from drimbox.systemerrors import system_reason
from drimbox.trust.certificates import CertificateUnusable


def cause_of(error: BaseException) -> BaseException:
    """Return what stood in the way of a request: a handshake that failed, a connection that was cut."""
    if isinstance(error, RequestTransmissionFailed | ResponseNeverReceived | ResponseFailed):
        first = error.reasons[0].value if error.reasons else None
        return error if first is None else cause_of(first)
    return error


def reason_of(error: BaseException) -> str:
    """Say in French why nothing came of a call, never quoting what was sent."""
    error = cause_of(error)
    if isinstance(error, CertificateUnusable | ProxyFailed | SecretUnusable):
        return str(error)
    if isinstance(error, SSL.Error):
        return _tls(error)
    if isinstance(error, DeferredTimeout | ConnectTimeout):
        return "pas de réponse dans le délai"
    if isinstance(error, DNSLookupError):
        return "nom introuvable"
    if isinstance(error, ConnectionRefusedError):
        return "connexion refusée"
    if isinstance(error, NoRouteError):
        return "aucune route vers cette machine"
    if isinstance(error, ConnectError):
        return "connexion impossible"
    if isinstance(error, OSError):
        return system_reason(error)
    return f"connexion perdue ({type(error).__name__})"


def _tls(error: SSL.Error) -> str:
    """Tell who refused whom: OpenSSL names the alert of the other side, or what it refused itself."""
    first = error.args[0] if error.args else ()
    words = " ; ".join(str(each[-1]) for each in first) if isinstance(first, list | tuple) else ""
    if "certificate verify failed" in words:
        return "certificat TLS du serveur refusé (autorité, date ou nom)"
    if "alert" in words:
        return f"certificat ou négociation TLS refusés par le serveur ({words})"
    if "wrong version number" in words or "packet length" in words or "record layer" in words:
        return "ce serveur ne parle pas TLS"
    return "certificat ou négociation TLS refusés"
