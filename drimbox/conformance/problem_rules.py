"""Judging a refusal: its status, its E-code, its JSON (requirements.md 3.2, DB.SO.47; RFC 9457).

The codes and their statuses are those of `drimbox.errors`, the gateway's only list. Only the status is
normative for a Consumer, so a body that is no JSON is a warning; a code that contradicts the status, or
that no text knows, is an error.
"""

from __future__ import annotations

from drimbox import errors
from drimbox.conformance.report import Report, shown
from drimbox.wado.answer import Head
from drimbox.wado.query import read_problem

#: Statuses of the codes whose status the specification leaves open (decisions.md).
_OPEN = {
    "E1104": frozenset({400, 401, 403, 404, 406, 421, 500, 502, 503, 504}),
    "E1105": frozenset({404, 405, 406, 415, 501}),
}
_VIEWER = frozenset({"E1201", "E1202", "E1203"})


def _table() -> dict[str, tuple[str, frozenset[int]]]:
    """Return, by code, its French title and the statuses it may come with."""
    found: dict[str, tuple[str, frozenset[int]]] = {}
    kinds: list[type[errors.ImageError]] = [errors.ImageError, *errors.ImageError.__subclasses__()]
    for kind in kinds:
        statuses = _OPEN.get(kind.code, frozenset({kind.http_status or 500}))
        found.setdefault(kind.code, (kind.title, statuses))
    return found


CODES = _table()


def check_problem(head: Head, body: bytes, report: Report) -> None:
    """Judge an answer of status 300 and above; `body` may be cut, then its JSON is not read."""
    status = head.status
    if status < 400:
        report.error("redirection : une source sert ses images elle-même", "DB.SO.173")
        return
    if status == 503 and head.get("retry-after") is None:
        report.warning("503 sans Retry-After", "RFC 9110 15.6.4")
    if status == 401 and head.get("www-authenticate") is None:
        report.warning("401 sans WWW-Authenticate", "RFC 9110 15.5.2")
    kind = (head.get("content-type") or "").partition(";")[0].strip().lower()
    problem = read_problem(body)
    if problem is None:
        report.warning("refus sans corps JSON : le code E… n'est pas donné", "DB.SO.47 ; RFC 9457")
        return
    if kind != "application/problem+json":
        report.warning(f"Content-Type {shown(kind, 40)} : application/problem+json attendu", "RFC 9457 3")
    report.facts["problem"] = {"code": problem.code, "title": problem.title, "detail": problem.detail}
    known = CODES.get(problem.code)
    if problem.code in _VIEWER:
        report.error(f"{problem.code} : code du visualiseur, pas de WADO-RS", "DB.SO.47")
    elif known is None:
        report.error(f"code {shown(problem.code, 20)} inconnu", "DB.SO.47")
    elif status not in known[1]:
        due = ", ".join(map(str, sorted(known[1])))
        report.error(f"{problem.code} ({known[0]}) avec le statut {status} au lieu de {due}", "DB.SO.47")
