"""Validating a captured WADO-RS request: would a Source understand it, and is it what DRIM-M asks for?

`validate_request` takes the bytes of a capture, as it went on the wire or as a log or a specification
prints it (interfaces.md 6.2). It lists every fault instead of the first one, and never disagrees with
the gateway: each header is also given, alone among perfect ones, to the very parser that serves requests
(`wado.request`), and what that refuses is an error here with the status it would answer.

The access token is judged by its shape and never repeated; whether it is valid is for Pro Santé Connect.
"""

from __future__ import annotations

import ipaddress
import re

from drimbox.config import WadoSettings
from drimbox.conformance.accept_rules import check_accept
from drimbox.conformance.report import Report, shown
from drimbox.conformance.request_text import HeaderLine, RequestText, read_request_text
from drimbox.dicom import syntaxes
from drimbox.errors import DrimboxError
from drimbox.model import is_uid
from drimbox.wado.request import SINGLE_VALUED, check_authority, read_request, split_target

_SETTINGS = WadoSettings()
#: A request that the gateway takes; one header at a time is put in the place of its counterpart.
_TARGET = b"/dicom-web-rs/studies/1.2.3/series/1.2.3.4"
_PERFECT = (
    (b"accept", b'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1'),
    (b"authorization", b"Bearer a"),
    (b"kos-sopinstanceuid", b"1.2.3.5"),
)
#: `dbN.<registry number>.<domain>` (requirements.md 3.12).
_LOCATION = re.compile(r"db[0-9]+\.[0-9]+\.[0-9a-z.-]+", re.IGNORECASE)
_LEADING_ZERO = re.compile(r"(?:^|\.)0[0-9]")
_JWT = re.compile(rb"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)
_CLAUSES = {
    b"authorization": "DB.CO.123 ; RFC 6750 2.1",
    b"kos-sopinstanceuid": "DB.CO.123",
    b"situation": "DB.SO.103",
    b"host": "RFC 9112 3.2",
}


def validate_request(data: bytes) -> Report:
    """Judge a captured request (DB.CO.122, DB.CO.123; PS3.18 10.4; OPTIONS: DB.SO.103).

    `data` is one request, CRLF or bare LF, target absolute or not. Never raises.
    """
    report = Report("requête WADO-RS")
    text = read_request_text(data, report)
    if text is None:
        return report
    method = text.method.decode("ascii", "backslashreplace")
    report.facts["method"] = method
    authority = _check_target(text, report)
    _check_repeats(text, report)
    _check_host(text, authority, report)
    if method in ("OPTIONS", "OPTION"):
        _check_ping(text, report)
        return report
    if method != "GET":
        report.error(f"méthode {shown(method, 20)} : GET attendu", "PS3.18 10.4", line=text.number)
    _check_path(text, report)
    _check_papers(text, report)
    acceptable = check_accept(text.named(b"accept"), report)
    if acceptable is not None:
        report.facts["accept"] = [
            {"transfer_syntax": uid, "name": syntaxes.TABLE[uid].name, "q": q}
            for uid, q in acceptable.ranked
        ]
    _check_others(text, report)
    return report


# --- the target -----------------------------------------------------------------------------------


def _check_target(text: RequestText, report: Report) -> str | None:
    """Judge the form of the target; return the authority of an absolute one."""
    target, line = text.target, text.number
    if target == b"*" and text.method.startswith(b"OPTION"):
        return None
    if target[:7].lower() == b"http://":
        report.error("http:// : TLS mutuel exigé, écrire https://", "DB.SO.90 ; DB.CO.98", line=line)
    if b"#" in target:
        report.error("fragment (#) dans la cible", "RFC 9112 3.2", line=line)
    if b"?" in target:
        report.warning("paramètres après « ? » : sans effet", "PS3.18 10.4", line=line)
    try:
        authority, _ = split_target(target)
    except DrimboxError as error:
        report.error(f"{error.detail} (réponse {error.status})", "RFC 9112 3.2", line=line)
        return None
    if authority is not None:
        report.inform(
            "cible absolue : forme destinée aux mandataires, acceptée", "RFC 9112 3.2.2", line=line
        )
    return authority


def _check_path(text: RequestText, report: Report) -> None:
    line = text.number
    try:
        _, path = split_target(text.target)
    except DrimboxError:
        return
    if "//" in path:
        report.error("deux barres obliques de suite dans le chemin", "DB.SO.173", line=line)
    if path.endswith("/"):
        report.warning("barre oblique à la fin du chemin", "DB.SO.173", line=line)
    segments = [segment for segment in path.split("/") if segment]
    if "studies" not in segments:
        report.error("chemin sans « studies/ »", "DB.SO.173 ; PS3.18 10.4", line=line)
        return
    # The last one: a prefix may hold the word.
    start = len(segments) - 1 - segments[::-1].index("studies")
    _check_prefix("/".join(segments[:start]), line, report)
    match segments[start:]:
        case ["studies", study, "series", series]:
            _check_uids({"study_uid": study, "series_uid": series}, line, report)
        case ["studies", study, "series", series, "instances", instance]:
            _check_uids({"study_uid": study, "series_uid": series, "instance_uid": instance}, line, report)
            report.inform(
                "niveau instance : réservé aux images clés ; E1105 si la source n'a pas l'option",
                "DB.CO.198 ; DB.SO.195",
                line=line,
            )
        case ["studies", study]:
            _check_uids({"study_uid": study}, line, report)
            report.warning(
                "niveau examen : une source n'est tenue qu'au niveau série", "DB.CO.122", line=line
            )
        case ["studies", study, "series", series, "instances", instance, "frames", _]:
            _check_uids({"study_uid": study, "series_uid": series, "instance_uid": instance}, line, report)
            report.warning("niveau image (frames) : aucune source n'y est tenue", "DB.CO.122", line=line)
        case _:
            report.error(
                "chemin inconnu : …/studies/{étude}/series/{série} attendu (réponse 404)",
                "DB.SO.173 ; DB.CO.122",
                line=line,
            )


def _check_prefix(prefix: str, line: int, report: Report) -> None:
    if prefix == "wado-rs":
        report.inform(
            "préfixe « wado-rs » de l'exemple de la spécification ; DB.SO.173 dit « dicom-web-rs »",
            "DB.SO.173",
            line=line,
        )
    elif prefix != "dicom-web-rs":
        report.warning(
            f"préfixe {shown(prefix)} au lieu de « dicom-web-rs » : "
            "bon seulement si c'est celui de la RetrieveURL du KOS",
            "DB.SO.173",
            line=line,
        )


def _check_uids(named: dict[str, str], line: int, report: Report) -> None:
    for name, uid in named.items():
        if not is_uid(uid):
            report.error(f"{shown(uid)} : pas un UID (réponse 400)", "PS3.5 9.1", line=line)
            continue
        report.facts[name] = uid
        _check_zero(uid, line, report)


def _check_zero(uid: str, line: int, report: Report) -> None:
    if _LEADING_ZERO.search(uid):
        report.warning(f"UID {uid} : composant commençant par zéro", "PS3.5 9.1", line=line)


# --- headers --------------------------------------------------------------------------------------


def _check_repeats(text: RequestText, report: Report) -> None:
    seen: set[bytes] = set()
    for header in text.headers:
        if header.key in SINGLE_VALUED and header.key in seen:
            name = header.name.decode("ascii")
            report.error(f"en-tête {name} en double (réponse 400)", "RFC 9110 5.3", line=header.number)
        seen.add(header.key)


def _check_host(text: RequestText, authority: str | None, report: Report) -> None:
    hosts = text.named(b"host")
    if not hosts:
        if authority is None:
            report.error("en-tête Host absent", _CLAUSES[b"host"], line=text.number)
        else:
            report.warning(
                "en-tête Host absent, même avec une cible absolue", "RFC 9112 3.2", line=text.number
            )
    for host in hosts:
        try:
            check_authority(b"/", [(b"host", host.value)], "", ())
        except DrimboxError as error:
            report.error(f"{error.detail} (réponse {error.status})", _CLAUSES[b"host"], line=host.number)
    first = hosts[0].value.decode("ascii", "replace") if hosts else ""
    location = authority if authority is not None else first
    if not location:
        return
    report.facts["location"] = location
    name = _name_of(location)
    line = text.number if authority is not None else hosts[0].number
    if _is_address(name):
        report.inform("adresse IP : le site est alors celui du SNI", "DB.SO.173", line=line)
    elif _LOCATION.fullmatch(name) is None:
        report.inform(
            f"{shown(name)} : les sources s'appellent dbN.<numéro>.<domaine>", "DB.SO.173", line=line
        )
    if authority is not None and first and _name_of(first) != name and not _is_address(_name_of(first)):
        report.warning("Host nomme un autre hôte que la cible", "RFC 9112 3.2.2", line=hosts[0].number)


def _name_of(location: str) -> str:
    host = location[: location.find("]") + 1] if location.startswith("[") else location.partition(":")[0]
    return host.strip("[]").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_papers(text: RequestText, report: Report) -> None:
    """Judge what says who asks, for which KOS: the gateway's own parser decides."""
    for key in (b"authorization", b"kos-sopinstanceuid", b"situation"):
        lines: list[HeaderLine | None] = [*text.named(key)]
        for line in lines or [None]:
            refusal = _refusal(key, line)
            if refusal is not None:
                what = f"{refusal.title} : {refusal.detail} (réponse {refusal.status})"
                report.error(what, _CLAUSES[key], line=line.number if line else None)
    for line in text.named(b"kos-sopinstanceuid"):
        if is_uid(uid := line.value.decode("ascii", "replace")):
            report.facts["kos_uid"] = uid
            _check_zero(uid, line.number, report)
    for line in text.named(b"authorization"):
        scheme, _, token = line.value.partition(b" ")
        token = token.strip(b" \t") if scheme.lower() == b"bearer" else b""
        report.facts["token_length"] = len(token)
        if token and _JWT.fullmatch(token) is None:
            report.inform("le jeton n'a pas la forme d'un JWT", "DB.CO.123", line=line.number)
    if not text.named(b"situation"):
        report.inform(
            "en-tête Situation absent : déclaré par l'exemple de capacités, omis par les requêtes de l'ANS",
            "DB.SO.103",
        )


def _refusal(key: bytes, line: HeaderLine | None) -> DrimboxError | None:
    """Return what the gateway answers to a request that is perfect but for this header."""
    headers = [pair for pair in _PERFECT if pair[0] != key]
    if line is not None:
        headers.append((key, line.value))
    try:
        read_request(_TARGET, headers, _SETTINGS)
    except DrimboxError as error:
        return error
    return None


def _check_others(text: RequestText, report: Report) -> None:
    for header in text.headers:
        match header.key, header.value.lower():
            case (b"transfer-encoding", _) | (b"content-length", _) if header.value != b"0":
                report.warning("corps annoncé : un GET n'en a pas", "RFC 9110 9.3.1", line=header.number)
            case b"range", _:
                report.warning(
                    "Range sans effet : la réponse est entière", "RFC 9110 14.2", line=header.number
                )
            case b"expect" | b"upgrade", _:
                report.warning(
                    f"en-tête {header.name.decode('ascii')} inutile", "RFC 9110 10.1.1", line=header.number
                )
            case b"cookie", _:
                report.warning("Cookie : l'accès se fait par jeton", "DB.CO.123", line=header.number)
            case _:
                pass


def _check_ping(text: RequestText, report: Report) -> None:
    if text.method == b"OPTION":
        report.warning(
            "méthode OPTION, comme l'exemple de la spécification : OPTIONS est son nom",
            "RFC 9110 9.3.7 ; DB.SO.103",
            line=text.number,
        )
    for header in text.named(b"authorization"):
        report.warning(
            "jeton inutile : la demande de capacités n'est pas authentifiée",
            "DB.SO.103",
            line=header.number,
        )
