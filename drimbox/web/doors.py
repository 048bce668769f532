"""What stands behind the names of the HTTPS listener: images behind `db…`, pages behind `vi…`.

Which kind of name was called comes from the TLS handshake, never from Host. A path of a viewer name that
no page answers goes to the images' own face, which turns it away and notes it, as any connection without a
client certificate.
"""

from __future__ import annotations

from typing import Any

from twisted.web import resource, server

from drimbox.errors import PeerNotTrusted
from drimbox.trust.contexts import Role, peer_of


class Doors(resource.Resource):
    """The root of the listener; `images` answers the WADO names."""

    isLeaf = True

    def __init__(self, images: resource.Resource) -> None:
        super().__init__()
        self._images = images
        self._pages: dict[bytes, resource.Resource] = {}

    def open(self, name: bytes, page: resource.Resource) -> None:
        """Answer `/<name>` and what is below it with `page`, on the viewer names."""
        self._pages[name] = page

    def is_open(self, name: bytes) -> bool:
        """Say whether a page answers `/<name>` on the viewer names."""
        return name in self._pages

    def render(self, request: server.Request) -> Any:
        """Hand the request to whoever answers it."""
        page = self._pages.get(request.uri[1:].partition(b"?")[0].partition(b"/")[0])
        if page is not None and request.channel is not None and is_viewer(request.channel.transport):
            return page.render(request)
        return self._images.render(request)


def is_viewer(transport: Any) -> bool:
    """Say whether a connection was opened to a viewer name, which asks for no client certificate."""
    try:
        return peer_of(transport).role is Role.VIEWER
    except PeerNotTrusted:
        return False
