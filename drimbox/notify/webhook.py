"""Notices by HTTPS: one POST of JSON for each digest (DB.SO.21).

Delivered is what is answered by 2xx; a redirection is a failure, because the token goes to the configured
address alone. The body of the answer interests nobody: the connection is cut once its head is there.
"""

from __future__ import annotations

import io
import json
from typing import Any
from urllib.parse import urlsplit

from twisted.web.client import URI, FileBodyProducer
from twisted.web.http_headers import Headers

from drimbox.config import WebhookSettings
from drimbox.httpbody import discard
from drimbox.notify.channel import NotDelivered, read_secret
from drimbox.notify.digest import data
from drimbox.notify.timed import TimedChannel
from drimbox.ports import Digest, InThread
from drimbox.trust.handshake import shake_hands
from drimbox.trust.outgoing import client_policy
from drimbox.trust.ways import Ways


class WebhookChannel(TimedChannel):
    """Posts digests."""

    name = "webhook"

    def __init__(self, settings: WebhookSettings, ways: Ways, in_thread: InThread) -> None:
        where = urlsplit(settings.url).hostname or ""
        super().__init__(where, settings.severity, settings.timeout, ways.reactor, in_thread)
        self._settings = settings
        self._ways = ways

    async def try_link(self) -> None:
        """Shake hands with the server, and say nothing; read the token all the same.

        Raises `NotDelivered`.
        """
        await self._in_time(self._greet())

    async def _greet(self) -> None:
        settings = self._settings
        if settings.token_file is not None:
            path = settings.token_file
            await self._in_thread(lambda: read_secret(path))
        policy = await self._in_thread(lambda: client_policy(settings.roots, None))
        where = URI.fromBytes(settings.url.encode("ascii"))
        tcp = self._ways.to("webhook", where.host.decode("ascii"), where.port, settings.timeout)
        await shake_hands(tcp, policy.creatorForNetloc(where.host, where.port), self._reactor)

    async def _send(self, digest: Digest) -> str:
        settings = self._settings
        headers = Headers({b"Content-Type": [b"application/json"], b"User-Agent": [b"DRIMbox"]})
        if settings.token_file is not None:
            path = settings.token_file
            token = await self._in_thread(lambda: read_secret(path))
            headers.addRawHeader(b"Authorization", b"Bearer " + token.encode())
        policy = await self._in_thread(lambda: client_policy(settings.roots, None))
        agent = self._ways.agent("webhook", policy, settings.timeout)
        body = FileBodyProducer(io.BytesIO(json.dumps(data(digest), ensure_ascii=False).encode("utf-8")))
        response: Any = await agent.request(b"POST", settings.url.encode("ascii"), headers, body)
        discard(response)
        if not 200 <= response.code < 300:
            raise NotDelivered(f"{self._where} : refusé par le serveur ({response.code})")
        return ""
