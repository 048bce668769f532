"""The gateway under attack: its doors, and what an attacker holds."""

from __future__ import annotations

import random
import socket
import ssl
import struct
from collections.abc import Callable

import attrs

from drimbox.sim.pki import Pair
from drimbox.sim.stand import LOOPBACK, OTHER_CONSUMER, STRANGER
from tests.integration.hospital import Hospital, Served

#: Seconds an attacker waits for anything.
PATIENCE = 10.0


@attrs.frozen
class Target:
    """Doors, and contexts of every kind of certificate, good and bad."""

    wado: int
    dicom: int
    hl7: int
    admin: int
    site: str
    viewer: str
    #: AE titles of ours that the attacker knows, and the one of the PACS they are for.
    titles: tuple[str, ...]
    pacs: str
    pairs: dict[str, Pair | None]
    #: A whole good request for images, and its path.
    request: bytes
    path: str
    _contexts: dict[str, ssl.SSLContext] = attrs.field(factory=dict, repr=False)

    def connect(self, port: int, source: str) -> socket.socket:
        """Connect to a door from an address of the loop."""
        return socket.create_connection((LOOPBACK, port), timeout=PATIENCE, source_address=(source, 0))

    def context(self, kind: str) -> ssl.SSLContext:
        """Return a context that shows the certificate of that kind, and believes every server."""
        if kind not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            pair = self.pairs[kind]
            if pair is not None:
                context.load_cert_chain(pair.certificate, pair.key)
            self._contexts[kind] = context
        return self._contexts[kind]

    def tls(self, source: str, kind: str = "other", sni: str | None = "") -> ssl.SSLSocket:
        """Finish a handshake with the WADO-RS door; `sni` is the site's name unless given."""
        plain = self.connect(self.wado, source)
        try:
            return self.context(kind).wrap_socket(plain, server_hostname=self.site if sni == "" else sni)
        except BaseException:
            plain.close()
            raise


Attack = Callable[[Target, random.Random, str], None]


def certificates(hospital: Hospital, site: int) -> dict[str, Pair | None]:
    """Issue the certificates that an attacker may hold; one is revoked before the gateway starts."""
    pki = hospital.stand.pki
    revoked = pki.issue_ssl_serv("db1.666.mesimagesmedicales.fr", name="attack-revoked")
    pki.revoke(revoked)
    return {
        "other": pki.sites[OTHER_CONSUMER],
        "unlisted": pki.sites[STRANGER],
        "none": None,
        "expired": pki.issue_ssl_serv("db1.667.mesimagesmedicales.fr", name="attack-expired", expired=True),
        "early": pki.issue_ssl_serv("db1.668.mesimagesmedicales.fr", name="attack-early", not_yet=True),
        "forged": pki.issue_ssl_serv(OTHER_CONSUMER, name="attack-forged", stranger=True),
        "revoked": revoked,
        "viewer": pki.viewers[hospital.stand.sites[site].replace("db", "vi", 1)],
    }


def target_of(
    hospital: Hospital, served: Served, pairs: dict[str, Pair | None], *, pacs: str, titles: tuple[str, ...]
) -> Target:
    """Describe a running gateway; `pacs` is a PACS that is taken over, `titles` those of ours for it."""
    stand, site = hospital.stand, hospital.stand.sites[served.site]
    return Target(
        wado=stand.wado_port,
        dicom=stand.dicom_port,
        hl7=stand.hl7_port,
        admin=stand.admin_port,
        site=site,
        viewer=site.replace("db", "vi", 1),
        titles=titles,
        pacs=pacs,
        pairs=pairs,
        request=hospital.request(served, "Connection: close"),
        path=served.path(),
    )


def heard(connection: socket.socket, *pieces: bytes, end: bool = False, patience: float = 1.0) -> bytes:
    """Send pieces; return what comes until the other side closes or falls silent."""
    received = b""
    try:
        for piece in pieces:
            connection.sendall(piece)
        if end:
            connection.shutdown(socket.SHUT_WR)
        connection.settimeout(patience)
        while more := connection.recv(65536):
            received += more
    except OSError:
        pass
    return received


def reset(connection: socket.socket) -> None:
    """End a connection by a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
