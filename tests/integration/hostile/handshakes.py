"""Handshakes that must fail, at the WADO-RS door."""

from __future__ import annotations

import random
import ssl
from contextlib import suppress

from tests.integration.hostile.target import Attack, Target, heard, reset

#: Certificates that no handshake ends well with.
BAD = ("none", "expired", "early", "forged", "revoked", "viewer")


def _entered(target: Target, source: str, kind: str, sni: str | None = "") -> bytes:
    """Return what a request gets, should the handshake succeed."""
    with target.tls(source, kind, sni) as connection:
        return heard(connection, target.request)


def _hello(context: ssl.SSLContext, name: str) -> bytes:
    """Return a ClientHello."""
    outgoing = ssl.MemoryBIO()
    half = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        half.do_handshake()
    return outgoing.read()


def bad_certificate(target: Target, chance: random.Random, source: str) -> None:
    """A certificate that is absent, expired, of the wrong authority, revoked, not for this."""
    kind = chance.choice(BAD)
    assert not _entered(target, source, kind), f"{kind} got an answer"


def unlisted(target: Target, chance: random.Random, source: str) -> None:
    """A good certificate that is not in the whitelist."""
    answer = _entered(target, source, "unlisted")
    assert not answer or answer.startswith(b"HTTP/1.1 401 "), answer[:100]


def weak(target: Target, chance: random.Random, source: str) -> None:
    """An old version, or suites without forward secrecy."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(chance.choice(("AES128-SHA:@SECLEVEL=0", "ECDHE-RSA-AES128-SHA:@SECLEVEL=0")))
    with (
        target.connect(target.wado, source) as plain,
        context.wrap_socket(plain, server_hostname=target.site),
    ):
        raise AssertionError("a weak suite was taken")


def wrong_name(target: Target, chance: random.Random, source: str) -> None:
    """No name, an unknown one, or a viewer's: the Host header opens nothing."""
    name = chance.choice((None, "db9.999.example", target.viewer, target.site + ".evil.example"))
    kind = chance.choice(("none", "other"))
    answer = _entered(target, source, kind, name)
    assert not answer.startswith(b"HTTP/1.1 200"), f"{name} got images"


def garbage(target: Target, chance: random.Random, source: str) -> None:
    """Bytes that are no TLS, or a broken one."""
    hello = bytearray(_hello(target.context("other"), target.site))
    hello[chance.randrange(len(hello))] ^= 1 << chance.randrange(8)
    data = chance.choice(
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n",
            chance.randbytes(300),
            b"\x16\x03\x01\xff\xff" + chance.randbytes(5000),
            b"\x80\x2e\x01\x00\x02" + b"\0" * 60,
            bytes(hello),
        )
    )
    with target.connect(target.wado, source) as plain:
        heard(plain, data, end=True)


def cut_short(target: Target, chance: random.Random, source: str) -> None:
    """A handshake that ends in the middle, in order or not."""
    hello = _hello(target.context("other"), target.site)
    plain = target.connect(target.wado, source)
    plain.sendall(hello[: chance.randrange(len(hello) + 1)])
    if chance.random() < 0.5:
        reset(plain)
    else:
        plain.close()


def http_2(target: Target, chance: random.Random, source: str) -> None:
    """HTTP/2 by ALPN, or by its preface."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    pair = target.pairs["other"]
    assert pair is not None
    context.load_cert_chain(pair.certificate, pair.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        target.connect(target.wado, source) as plain,
        context.wrap_socket(plain, server_hostname=target.site) as connection,
    ):
        assert connection.selected_alpn_protocol() != "h2"
        answer = heard(connection, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" * 50)
        assert not answer.startswith(b"HTTP/1.1 200")


#: Attacks that end before a request, for those who count failed handshakes.
FAILING: tuple[Attack, ...] = (bad_certificate, bad_certificate, weak, garbage, cut_short)
ATTACKS: dict[str, tuple[Attack, ...]] = {
    "TLS downgrade, weak or revoked certificates": (bad_certificate, unlisted, weak, garbage, cut_short),
    "client certificate bypassed by SNI": (wrong_name,),
    "HTTP/2 reset floods": (http_2,),
}
