"""The kinds of values of the configuration file: durations, sizes, ports, names, UIDs, AE titles ...

A `Rule` turns a TOML value into the typed value of `drimbox.config`, or raises `Rejected` with the
problem and the way to mend it, in French. Rules know one value at a time: which key obeys which rule is
in `configkeys`, what two keys say together in `configcheck`, what a path leads to in `configpaths`.
Nothing here reads a file, a clock or a socket.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from drimbox.model import is_ae_title, is_uid
from drimbox.trust.names import NameUnreadable, parse_name

KIB, MIB, GIB = 1024, 1024**2, 1024**3
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

_DURATION = re.compile(r"([0-9]+(?:[.,][0-9]+)?)\s*(ms|s|min|h|j|d)", re.ASCII)
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": MINUTE, "h": HOUR, "j": DAY, "d": DAY}
_SIZE = re.compile(r"([0-9]+(?:[.,][0-9]+)?)\s*(B|o|KiB|MiB|GiB|TiB|Kio|Mio|Gio|Tio)", re.ASCII)
_SIZE_UNITS = {"B": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB, "o": 1}
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_AEAD_SUITE = re.compile(
    r"(?:ECDHE-ECDSA|ECDHE-RSA|DHE-RSA)-"
    r"(?:AES(?:128|256)-(?:GCM-SHA(?:256|384)|CCM)|CHACHA20-POLY1305)",
    re.ASCII,
)


class Rejected(ValueError):
    """A value that a rule refuses: `problem` says what is wrong, `mend` what to write instead."""

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.mend = mend


@attrs.frozen
class Rule:
    """How one value is read; `kind` describes what it may be, in French, for the reference document."""

    kind: str
    read: Callable[[object], Any]


def show(value: object) -> str:
    """Write a value of the file as an operator knows it: « text », 12, true, une liste, une table."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:57] + "..."
        return "« " + _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", short) + " »"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)[:40]
    if isinstance(value, list):
        return "une liste"
    return "une table" if isinstance(value, dict) else "une date"


def closest(word: str, known: list[str]) -> str | None:
    """Return the known word that `word` most likely meant, or None."""
    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return found[0] if found else None


def _number(value: float) -> str:
    return f"{value:g}".replace(".", ",")


def amount(value: int) -> str:
    """Write a count, or a size in the largest unit that divides it: `32MiB`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if value and value % unit == 0:
            return f"{value // unit}{name}"
    return str(value)


def span(seconds: float) -> str:
    """Write a duration in the largest unit that divides it: `30s`, `5min`, `500ms`."""
    for unit, name in ((DAY, "j"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{_number(seconds / unit)}{name}"
    return f"{_number(seconds)}s" if seconds == 0 or seconds >= 1 else f"{_number(seconds * 1000)}ms"


def _string(value: object, mend: str) -> str:
    if not isinstance(value, str):
        raise Rejected(f"{show(value)} n'est pas un texte", mend)
    if _CONTROL.search(value):
        raise Rejected("contient un caractère de contrôle", "retirer ce caractère")
    return value


# --- builders -------------------------------------------------------------------------------------


def boolean() -> Rule:
    """`true` or `false`, nothing that looks like it."""

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise Rejected(f"{show(value)} n'est ni true ni false", "écrire true ou false, sans guillemets")
        return value

    return Rule("true ou false", read)


def integer(low: int, high: int) -> Rule:
    """An integer from `low` to `high`, both allowed."""
    limits = f"de {low} à {high}"

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Rejected(f"{show(value)} n'est pas un nombre entier", f"écrire un entier {limits}")
        if not low <= value <= high:
            raise Rejected(f"{show(value)} n'est pas {limits}", f"écrire un entier {limits}")
        return value

    return Rule(f"entier {limits}", read)


def number(low: float, high: float) -> Rule:
    """A number, with or without decimals, from `low` to `high`, both allowed."""
    limits = f"de {_number(low)} à {_number(high)}"

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Rejected(f"{show(value)} n'est pas un nombre", f"écrire un nombre {limits}")
        if not low <= value <= high:  # false for NaN too
            raise Rejected(f"{show(value)} n'est pas {limits}", f"écrire un nombre {limits}")
        return float(value)

    return Rule(f"nombre {limits}", read)


def port() -> Rule:
    """A TCP port."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise Rejected(
                f"{show(value)} n'est pas un port (1 à 65535)", "écrire un entier, sans guillemets"
            )
        return value

    return Rule("port (1 à 65535)", read)


def duration(low: float, high: float) -> Rule:
    """Seconds, written as a number or as `"30s"`, `"5min"`, `"2h"`, `"500ms"`, `"1j"`."""
    mend = f"écrire une durée de {span(low)} à {span(high)}, par exemple " + '"30s", "5min" ou "2h"'

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Rejected(f"{show(value)} n'est pas une durée", mend)
        if isinstance(value, str):
            found = _DURATION.fullmatch(value.strip())
            if found is None:
                raise Rejected(f"{show(value)} n'est pas une durée", mend)
            seconds = float(found[1].replace(",", ".")) * _DURATION_UNITS[found[2]]
        elif isinstance(value, int) and value.bit_length() > 64:
            seconds = math.inf
        else:
            seconds = float(value)
        if not low <= seconds <= high:  # false for NaN too
            raise Rejected(f"{show(value)} n'est pas entre {span(low)} et {span(high)}", mend)
        return seconds

    return Rule(f"durée de {span(low)} à {span(high)}", read)


def size(low: int, high: int) -> Rule:
    """Bytes, written as an integer or as `"32MiB"`, `"2GiB"`, `"512KiB"`."""
    mend = f"écrire une taille de {amount(low)} à {amount(high)}, par exemple " + '"32MiB" ou "2GiB"'

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Rejected(f"{show(value)} n'est pas une taille", mend)
        if isinstance(value, str):
            found = _SIZE.fullmatch(value.strip())
            if found is None:
                raise Rejected(f"{show(value)} n'est pas une taille", mend)
            count = float(found[1].replace(",", ".")) * _SIZE_UNITS[found[2][0]]
            found_bytes = int(count) if count < 2**63 else 2**63
        else:
            found_bytes = value
        if not low <= found_bytes <= high:
            raise Rejected(f"{show(value)} n'est pas entre {amount(low)} et {amount(high)}", mend)
        return found_bytes

    return Rule(f"taille de {amount(low)} à {amount(high)}", read)


def text(longest: int = 128, *, empty: bool = False) -> Rule:
    """Free text of at most `longest` characters, without control characters."""

    def read(value: object) -> str:
        words = _string(value, "écrire un texte entre guillemets")
        if not words.strip() and not empty:
            raise Rejected("est vide", "écrire une valeur, ou retirer la ligne si la clé est facultative")
        if len(words) > longest:
            raise Rejected(f"dépasse {longest} caractères", f"écrire au plus {longest} caractères")
        return words

    return Rule(f"texte ({longest} caractères au plus)", read)


def pattern(expression: str, what: str, example: str) -> Rule:
    """Text that matches the whole of `expression`; `what` and `example` explain it."""
    compiled = re.compile(expression, re.ASCII)
    mend = f"écrire {what}, par exemple « {example} »"

    def read(value: object) -> str:
        words = _string(value, mend)
        if compiled.fullmatch(words) is None:
            raise Rejected(f"{show(value)} n'est pas {what}", mend)
        return words

    return Rule(what, read)


def choice(*allowed: str) -> Rule:
    """One of a few words."""
    listed = ", ".join(f'"{word}"' for word in allowed)

    def read(value: object) -> str:
        words = _string(value, f"écrire une de ces valeurs : {listed}")
        if words not in allowed:
            near = closest(words, list(allowed))
            mend = f'écrire plutôt "{near}" ?' if near else f"écrire une de ces valeurs : {listed}"
            raise Rejected(f"{show(value)} n'est pas une de ces valeurs : {listed}", mend)
        return words

    return Rule(f"une de ces valeurs : {listed}", read)


def path() -> Rule:
    """A path; a relative one starts from the folder of the file."""

    def read(value: object) -> Path:
        words = _string(value, "écrire un chemin entre guillemets")
        if not words.strip():
            raise Rejected("est vide", "écrire un chemin")
        if words.startswith("~"):
            raise Rejected(
                f"{show(value)} commence par ~, qui n'est pas développé ici", "écrire un chemin absolu"
            )
        return Path(words)

    return Rule("chemin (relatif : depuis le dossier de ce fichier)", read)


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
        words = _string(value, mend)
        if not is_address(words) and not is_host_name(words):
            raise Rejected(f"{show(value)} n'est ni un nom de machine ni une adresse IP", mend)
        return words

    return Rule("nom DNS ou adresse IP", read)


def fqdn() -> Rule:
    """A full DNS name, given back in lower case: names are compared without case (RFC 4343)."""
    mend = "écrire un nom complet, par exemple « db1.349.mesimagesmedicales.fr »"

    def read(value: object) -> str:
        words = _string(value, mend)
        if not is_host_name(words) or "." not in words:
            raise Rejected(f"{show(value)} n'est pas un nom de domaine complet", mend)
        return words.lower()

    return Rule("nom de domaine complet", read)


def distinguished_name() -> Rule:
    """A distinguished name as RFC 4514 writes it; types by short name (CN, OU, O, ST, L, C) or number."""
    mend = "écrire un nom de la forme « CN=AC EXEMPLE,O=EXEMPLE,C=FR »"

    def read(value: object) -> str:
        words = _string(value, mend)
        try:
            parse_name(words)
        except NameUnreadable:
            raise Rejected(f"{show(value)} n'est pas un nom X.500", mend) from None
        return words

    return Rule("nom X.500 (RFC 4514)", read)


def listen_address() -> Rule:
    """An address of this machine to listen on."""
    mend = 'écrire une adresse de cette machine, "127.0.0.1", ou "0.0.0.0" pour toutes'

    def read(value: object) -> str:
        words = _string(value, mend)
        if not is_address(words):
            raise Rejected(f"{show(value)} n'est pas une adresse IP", mend)
        return words

    return Rule("adresse IP de cette machine", read)


def network() -> Rule:
    """An address, or a network in CIDR form."""
    mend = "écrire une adresse (« 10.1.2.3 ») ou un réseau (« 10.1.2.0/24 »)"

    def read(value: object) -> str:
        words = _string(value, mend)
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
        words = _string(value, mend)
        found = form.fullmatch(words)
        if found is None or not is_host_name(found[1]):
            raise Rejected(f"{show(value)} n'est pas une adresse électronique", mend)
        return words

    return Rule("adresse électronique", read)


def ae_title() -> Rule:
    """A DICOM AE title (PS3.5 6.2), without the blanks that do not count."""
    mend = "écrire 1 à 16 caractères ASCII, sans barre oblique inverse ni blanc au bord"

    def read(value: object) -> str:
        words = _string(value, mend)
        if not is_ae_title(words) or words != words.strip():
            raise Rejected(f"{show(value)} n'est pas un AE title", mend)
        return words

    return Rule("AE title (1 à 16 caractères)", read)


def uid(longest: int = 64) -> Rule:
    """A UID or OID (PS3.5 9.1) of at most `longest` characters."""
    mend = f"écrire des chiffres séparés par des points, {longest} caractères au plus"

    def read(value: object) -> str:
        words = _string(value, mend)
        if not is_uid(words):
            raise Rejected(f"{show(value)} n'est pas un UID", mend)
        if len(words) > longest:
            raise Rejected(f"{show(value)} dépasse {longest} caractères", mend)
        return words

    return Rule(f"UID ({longest} caractères au plus)", read)


def https_url(*, base: bool = False, loopback: bool = False, plain: bool = False) -> Rule:
    """An `https` URL without credentials or fragment; with `base`, without path end or query either.

    With `loopback`, `http` too when it never leaves this machine; with `plain`, `http` to anywhere: what
    is fetched there is signed.
    """
    mend = "écrire une adresse de la forme « https://hote.exemple.fr" + ("" if base else "/chemin") + " »"

    def read(value: object) -> str:
        words = _string(value, mend)
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


def store_url() -> Rule:
    """A SQLAlchemy URL of a database we know, without a password in it."""
    mend = "écrire « sqlite:////chemin/absolu.db » ou « postgresql+psycopg://utilisateur@hote/base »"

    def read(value: object) -> str:
        words = _string(value, mend)
        scheme = words.partition("://")[0]
        authority = words.partition("://")[2].partition("/")[0]
        if ":" in authority.rpartition("@")[0] or re.search(r"[?&]password=", words, re.IGNORECASE):
            raise Rejected(
                "contient un mot de passe",
                "l'écrire dans un fichier, le nommer dans [store] password_file, et le retirer d'ici",
            )
        if scheme not in ("sqlite", "postgresql+psycopg") or "://" not in words:
            raise Rejected(f"{show(value)} n'est pas une base connue", mend)
        if scheme == "sqlite" and not words.startswith("sqlite:////"):
            raise Rejected(f"{show(value)} ne mène pas à un fichier par un chemin absolu", mend)
        return words

    return Rule("URL SQLAlchemy, sans mot de passe", read)


def aead_suites() -> Rule:
    """OpenSSL names of TLS 1.2 suites with forward secrecy and authenticated encryption only."""

    def read(value: object) -> str:
        words = _string(value, "écrire des noms de suites OpenSSL séparés par « : »")
        for suite in words.split(":"):
            if _AEAD_SUITE.fullmatch(suite) is None:
                raise Rejected(
                    f"{show(suite)} n'est pas une suite ECDHE ou DHE à chiffrement authentifié",
                    "retirer cette suite, ou retirer la ligne pour garder les suites par défaut",
                )
        return words

    return Rule("suites TLS 1.2 séparées par « : »", read)


def several(rule: Rule, *, least: int = 0, most: int = 1024) -> Rule:
    """A list in which every element obeys `rule` and none comes twice; given back as a tuple."""

    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Rejected(
                f"{show(value)} n'est pas une liste", 'écrire des crochets, par exemple ["un", "deux"]'
            )
        if not least <= len(value) <= most:
            problem = "est vide" if not value else f"compte {len(value)} éléments"
            raise Rejected(problem, f"écrire de {least} à {most} éléments entre crochets")
        items = []
        for position, item in enumerate(value):
            try:
                items.append(rule.read(item))
            except Rejected as rejected:
                raise Rejected(f"élément {position + 1} : {rejected.problem}", rejected.mend) from None
        for position, item in enumerate(items):
            if item in items[:position]:
                raise Rejected(f"{show(item)} y figure deux fois", "retirer la répétition")
        return tuple(items)

    return Rule(f"liste ; chaque élément : {rule.kind}", read)
