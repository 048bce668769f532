"""Names, addresses, ports and URLs."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from drimbox.configfile.rules.values import Rejected, Rule, show, string

_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", re.ASCII)


def port() -> Rule:
    """A TCP port."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise Rejected(
                f"{show(value)} n'est pas un port (1 à 65535)", "écrire un entier, sans guillemets"
            )
        return value

    return Rule("port (1 à 65535)", read)


def is_host_name(value: str) -> bool:
    """Say whether `value` is a DNS host name (RFC 1123 2.1) that no resolver reads as an address."""
    labels = value.split(".")
    return len(value) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def is_address(value: str) -> bool:
    """Say whether `value` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def host() -> Rule:
    """A machine to call: DNS name or address."""
    mend = "écrire un nom DNS ou une adresse IP, sans port ni schéma"

    def read(value: object) -> str:
        words = string(value, mend)
        if not is_address(words) and not is_host_name(words):
            raise Rejected(f"{show(value)} n'est ni un nom de machine ni une adresse IP", mend)
        return words

    return Rule("nom DNS ou adresse IP", read)


def fqdn() -> Rule:
    """A full DNS name, given back in lower case: names are compared without case (RFC 4343)."""
    mend = "écrire un nom complet, par exemple « db1.349.mesimagesmedicales.fr »"

    def read(value: object) -> str:
        words = string(value, mend)
        if not is_host_name(words) or "." not in words:
            raise Rejected(f"{show(value)} n'est pas un nom de domaine complet", mend)
        return words.lower()

    return Rule("nom de domaine complet", read)


def listen_address() -> Rule:
    """An address of this machine to listen on."""
    mend = 'écrire une adresse de cette machine, "127.0.0.1", ou "0.0.0.0" pour toutes'

    def read(value: object) -> str:
        words = string(value, mend)
        if not is_address(words):
            raise Rejected(f"{show(value)} n'est pas une adresse IP", mend)
        return words

    return Rule("adresse IP de cette machine", read)


def network() -> Rule:
    """An address, or a network in CIDR form."""
    mend = "écrire une adresse (« 10.1.2.3 ») ou un réseau (« 10.1.2.0/24 »)"

    def read(value: object) -> str:
        words = string(value, mend)
        try:
            ipaddress.ip_network(words)
        except ValueError:
            try:
                loose = ipaddress.ip_network(words, strict=False)
            except ValueError:
                raise Rejected(f"{show(value)} n'est ni une adresse ni un réseau IP", mend) from None
            raise Rejected(
                f"{show(value)} désigne une machine et non un réseau", f"écrire plutôt « {loose} »"
            ) from None
        return words

    return Rule("adresse IP ou réseau (CIDR)", read)


def origin() -> Rule:
    """Where a peer may call from: an address, a network in CIDR form or a DNS name."""
    inner = network()

    def read(value: object) -> str:
        if isinstance(value, str) and is_host_name(value):
            return value
        read_network: str = inner.read(value)
        return read_network

    return Rule("adresse IP, réseau (CIDR) ou nom DNS", read)


def mail_address() -> Rule:
    """An e-mail address of ASCII characters that need no quotes (RFC 5321 4.1.2)."""
    local = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    form = re.compile(rf"(?=.{{3,254}}$){local}@([A-Za-z0-9.-]+)", re.ASCII)
    mend = "écrire une adresse de la forme « exploitation@exemple.fr »"

    def read(value: object) -> str:
        words = string(value, mend)
        found = form.fullmatch(words)
        if found is None or not is_host_name(found[1]):
            raise Rejected(f"{show(value)} n'est pas une adresse électronique", mend)
        return words

    return Rule("adresse électronique", read)


def https_url(*, base: bool = False, loopback: bool = False, plain: bool = False) -> Rule:
    """An `https` URL without credentials or fragment; with `base`, without path end or query either.

    With `loopback`, `http` too when it never leaves this machine; with `plain`, `http` to anywhere: what
    is fetched there is signed.
    """
    mend = "écrire une adresse de la forme « https://hote.exemple.fr" + ("" if base else "/chemin") + " »"

    def read(value: object) -> str:
        words = string(value, mend)
        try:
            parts = urlsplit(words)
            number = parts.port
        except ValueError:
            raise Rejected(f"{show(value)} n'est pas une adresse URL", mend) from None
        name = parts.hostname or ""
        clear = parts.scheme == "http" and (plain or (loopback and _is_loopback(name)))
        if parts.scheme != "https" and not clear:
            what = "https, ni http sur cette machine" if loopback else "http ou https" if plain else "https"
            raise Rejected(f"{show(value)} n'est pas une adresse {what}", mend)
        if number == 0 or not (is_host_name(name) or is_address(name)) or re.search(r"[\s\\]", words):
            raise Rejected(f"{show(value)} n'est pas une adresse URL", mend)
        if "@" in parts.netloc:
            # The value is not shown: it holds what may be a password.
            raise Rejected("contient un identifiant ou un mot de passe", "retirer ce qui précède « @ »")
        if parts.fragment or (base and parts.query):
            raise Rejected(f"{show(value)} contient « ? » ou « # »", mend)
        if base and words.endswith("/"):
            return words.rstrip("/")
        return words

    return Rule("adresse https, ou http sur cette machine" if loopback else "adresse https", read)


def _is_loopback(name: str) -> bool:
    """Say whether a URL's host is this very machine."""
    return name == "localhost" or (is_address(name) and ipaddress.ip_address(name).is_loopback)
