"""Notices by HTTPS: one POST of JSON for each digest (DB.SO.21).

Delivered is what is answered by 2xx; a redirection is a failure, because the token goes to the configured
address alone. The body of the answer interests nobody: the connection is cut once its head is there.
"""

from __future__ import annotations

import io
import json
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import Protocol
from twisted.web.client import Agent, FileBodyProducer
from twisted.web.http_headers import Headers

from drimbox.config import WebhookSettings
from drimbox.notify.channel import InThread, NotDelivered, read_secret
from drimbox.notify.digest import data
from drimbox.ports import Digest, Severity
from drimbox.trust.certificates import CertificateUnusable
from drimbox.trust.contexts import client_policy


class WebhookChannel:
    """Posts digests."""

    name = "webhook"

    def __init__(self, settings: WebhookSettings, reactor: Any, in_thread: InThread) -> None:
        self._settings = settings
        self._reactor = reactor
        self._in_thread = in_thread
        self.severity = Severity(settings.severity)

    async def send(self, digest: Digest) -> str:
        """Deliver one digest; the remark is always empty. Raises `NotDelivered`."""
        work = Deferred.fromCoroutine(self._send(digest))
        work.addTimeout(self._settings.timeout, self._reactor)
        try:
            status = await work
        except (NotDelivered, CancelledError):
            raise
        except DeferredTimeout:
            raise NotDelivered("pas de réponse dans le délai") from None
        except CertificateUnusable as error:
            raise NotDelivered(str(error)) from None
        except Exception as error:
            # Only its type: the text of some errors repeats the request.
            raise NotDelivered(f"échange impossible ({type(error).__name__})") from None
        if not 200 <= status < 300:
            raise NotDelivered(f"refusé par le serveur ({status})")
        return ""

    async def _send(self, digest: Digest) -> int:
        settings = self._settings
        headers = Headers({b"Content-Type": [b"application/json"], b"User-Agent": [b"DRIMbox"]})
        if settings.token_file is not None:
            path = settings.token_file
            token = await self._in_thread(lambda: read_secret(path))
            headers.addRawHeader(b"Authorization", b"Bearer " + token.encode())
        policy = await self._in_thread(lambda: client_policy(settings.roots, None))
        agent = Agent(self._reactor, policy, connectTimeout=settings.timeout)
        body = FileBodyProducer(io.BytesIO(json.dumps(data(digest), ensure_ascii=False).encode("utf-8")))
        response: Any = await agent.request(b"POST", settings.url.encode("ascii"), headers, body)
        response.deliverBody(_Cut())
        return int(response.code)


class _Cut(Protocol):
    """Wants no body."""

    def connectionMade(self) -> None:
        # The body's transport only stands in for the connection, and cannot cut it itself.
        proxy: Any = self.transport
        abort = getattr(getattr(proxy, "_producer", None), "abortConnection", None)
        if abort is not None:
            abort()
        else:
            proxy.stopProducing()
