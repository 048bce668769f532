"""Reading a WADO-RS request: what is asked, with which papers (interfaces.md 6.1, 6.2).

Pure functions over the request target and the raw header pairs, so that what real clients and attackers
write is tested byte by byte without a server. The order of the checks is that of interfaces.md 6.4:
first the path (a request for something we do not serve never gets further), then the headers in
themselves, the access token last, since its content is somebody else's to judge. Everything a peer
sends comes out either as a validated UID, a validated identifier, or not at all; no error repeats it.

A header that may come once and comes twice is refused: two readers could each take another one
(threats.md, HTTP smuggling). A target may be an absolute URI; its authority then replaces `Host`
(RFC 9112 3.2.2).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence

import attrs

from drimbox.config import WadoSettings
from drimbox.errors import (
    BadRequest,
    DrimboxError,
    InstanceLevelUnsupported,
    NotServed,
    TokenInvalid,
    TokenMissing,
)
from drimbox.model import is_uid
from drimbox.wado.accept import Acceptable
from drimbox.wado.accept import parse as parse_accept

#: An access token longer than this is never looked at (threats.md, JOSE), bytes.
MAX_TOKEN = 8 * 1024
#: Longest request target; a real one has two or three UIDs, a prefix and perhaps an authority.
MAX_TARGET = 1024
#: Headers of which a second one is refused. Accept is the one that may be repeated.
SINGLE_VALUED = frozenset({b"host", b"authorization", b"kos-sopinstanceuid", b"situation"})

#: RFC 6750 2.1.
_TOKEN = re.compile(rb"[0-9A-Za-z._~+/-]+=*")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(rb"([0-9A-Za-z._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")
#: Struct_IdNat (requirements.md 3.5), and room for the RPPS form with its slash.
_STRUCTURE = re.compile(rb"[0-9A-Za-z][0-9A-Za-z/._-]{0,63}")


class Level(enum.Enum):
    """What a target points at, in the words of PS3.18 10.4."""

    SERIES = "series"
    INSTANCE = "instance"
    #: Study, frames, metadata, rendered, bulk data ...: nothing of ours.
    OTHER = "other"


@attrs.frozen
class Target:
    """A request target once read. UIDs are valid, and absent where the level has none."""

    level: Level
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str | None = None


@attrs.frozen
class ImagesRequest:
    """A well-formed request for one series, or for one instance of it; its token is not yet verified."""

    study_uid: str
    series_uid: str
    #: KOS-SOPInstanceUID; None only for the reference study, which has no KOS check (DB.SO.38).
    kos_uid: str | None
    #: Kept out of `repr`, so that no log line or traceback shows it.
    token: str = attrs.field(repr=False)
    acceptable: Acceptable
    #: `Situation` header: structure of the professional's activity, None when absent.
    situation: str | None = None
    #: The one instance asked for (DB.SO.195), None for the whole series.
    instance_uid: str | None = None


def split_target(target: bytes) -> tuple[str | None, str]:
    """Split a request target into (authority of an absolute URI or None, path), without the query.

    The path is ASCII and starts with a slash. Raises `BadRequest` for anything else, and for a target
    that is too long.
    """
    if len(target) > MAX_TARGET:
        raise BadRequest("cible de la requête trop longue")
    authority: bytes | None = None
    if (absolute := _ABSOLUTE.fullmatch(target)) is not None:
        authority, target = absolute[1], absolute[2] or b"/"
        if _AUTHORITY.fullmatch(authority) is None:
            raise BadRequest("cible de la requête illisible")
    path = target.partition(b"#")[0].partition(b"?")[0]
    if not path.startswith(b"/") or any(byte <= 0x20 or byte >= 0x7F for byte in path):
        raise BadRequest("cible de la requête illisible")
    return authority.decode("ascii") if authority is not None else None, path.decode("ascii")


def read_target(target: bytes, settings: WadoSettings) -> Target:
    """Read which resource a target names. Raises `NotServed` (404) and `BadRequest` (400).

    A path counts as ours when one of the configured prefixes stands before `studies/`. UIDs that are
    not UIDs are a mistake of the client's, not an unknown resource. A slash at the end is tolerated.
    """
    _, path = split_target(target)
    segments = _behind_prefix(path, settings.prefixes)
    if segments is None:
        raise NotServed("chemin inconnu")
    match segments:
        case ["studies", study, "series", series]:
            return Target(Level.SERIES, _uid(study), _uid(series))
        case ["studies", study, "series", series, "instances", instance]:
            return Target(Level.INSTANCE, _uid(study), _uid(series), _uid(instance))
    return Target(Level.OTHER)


def named_study(target: bytes, settings: WadoSettings) -> str:
    """Return the StudyInstanceUID a target names, for the audit trail; empty when it names none."""
    try:
        return read_target(target, settings).study_uid
    except DrimboxError:
        return ""


def read_request(
    target: bytes, headers: Iterable[tuple[bytes, bytes]], settings: WadoSettings
) -> ImagesRequest:
    """Read a GET of a series or, with the key-image option, of one instance (DB.SO.195).

    `headers` are the raw (name, value) pairs in the order received. Raises, in this order:
    `BadRequest`/`NotServed`/`InstanceLevelUnsupported` for the target, `BadRequest` for a header given
    twice, a missing or bad KOS-SOPInstanceUID or a bad Situation, `BadRequest`/`NotAcceptable` for
    Accept, `TokenMissing` (401) or `TokenInvalid` (403) for Authorization.
    """
    wanted = read_target(target, settings)
    if wanted.level is Level.INSTANCE and not settings.instance_level:
        raise InstanceLevelUnsupported("demander la série entière", status=settings.instance_level_status)
    if wanted.level is Level.OTHER:
        raise NotServed("niveau non proposé")
    pairs = [(name.lower(), value.strip(b" \t")) for name, value in headers]
    refuse_duplicates(pairs)
    single = {name: value for name, value in pairs if name in SINGLE_VALUED}
    kos_uid = _kos_uid(single.get(b"kos-sopinstanceuid"), wanted.study_uid, settings)
    situation = _situation(single.get(b"situation"))
    acceptable = parse_accept(value for name, value in pairs if name == b"accept")
    token = _token(single.get(b"authorization"))
    return ImagesRequest(
        wanted.study_uid, wanted.series_uid, kos_uid, token, acceptable, situation, wanted.instance_uid
    )


def refuse_duplicates(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise `BadRequest` when a header that may come once comes twice, even with the same value."""
    seen: set[bytes] = set()
    for name, _ in headers:
        name = name.lower()
        if name in SINGLE_VALUED:
            if name in seen:
                raise BadRequest("en-tête en double")
            seen.add(name)


def check_authority(
    target: bytes, headers: Iterable[tuple[bytes, bytes]], served: str, names: Sequence[str]
) -> None:
    """Check that a request does not name another site than the connection it came on.

    `served` is the FQDN that the TLS handshake chose, `names` every FQDN of this gateway. The authority
    of an absolute target counts before `Host`. One that is another name of ours is refused with 421
    (RFC 9110 15.5.20); an address or an unknown name is tolerated, as clients behind a NAT write it
    (decisions.md). Raises `BadRequest` with status 400 or 421.
    """
    authority, _ = split_target(target)
    if authority is None:
        hosts = [value.strip(b" \t") for name, value in headers if name.lower() == b"host"]
        if len(hosts) > 1:
            raise BadRequest("en-tête en double")
        if not hosts:
            return
        if _AUTHORITY.fullmatch(hosts[0]) is None:
            raise BadRequest("en-tête Host illisible")
        authority = hosts[0].decode("ascii")
    host = authority if authority.startswith("[") else authority.partition(":")[0]
    host = host.rstrip(".").lower()
    if host != served.lower() and host in {name.lower() for name in names}:
        raise BadRequest("le nom demandé n'est pas celui de la connexion", status=421)


def _behind_prefix(path: str, prefixes: Sequence[str]) -> list[str] | None:
    """Return the segments from `studies` on, or None when no configured prefix stands before them."""
    relative = path[1:].removesuffix("/")
    for prefix in prefixes:
        lead = prefix.strip("/")
        lead = lead + "/" if lead else ""
        if relative.startswith(lead + "studies/"):
            return relative[len(lead) :].split("/")
    return None


def _uid(segment: str) -> str:
    # A percent sign, a letter or a dot-dot can never pass: what comes out is digits and dots.
    if not is_uid(segment):
        raise BadRequest("UID illisible dans le chemin")
    return segment


def _kos_uid(value: bytes | None, study_uid: str, settings: WadoSettings) -> str | None:
    if not value:
        if study_uid == settings.reference_study:
            return None
        raise BadRequest("en-tête KOS-SOPInstanceUID absent")
    uid = value.decode("latin-1")
    if not is_uid(uid):
        raise BadRequest("en-tête KOS-SOPInstanceUID illisible")
    return uid


def _situation(value: bytes | None) -> str | None:
    if not value:
        return None
    if _STRUCTURE.fullmatch(value) is None:
        raise BadRequest("en-tête Situation illisible")
    return value.decode("ascii")


def _token(value: bytes | None) -> str:
    scheme, _, credentials = (value or b"").partition(b" ")
    credentials = credentials.strip(b" \t")
    if scheme.lower() != b"bearer" or not credentials:
        raise TokenMissing("en-tête Authorization: Bearer attendu")
    if len(credentials) > MAX_TOKEN:
        raise TokenInvalid("jeton trop long")
    if _TOKEN.fullmatch(credentials) is None:
        raise TokenInvalid("jeton mal formé")
    return credentials.decode("ascii")
