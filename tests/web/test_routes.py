"""Every command that acts on a running gateway has its route, and every route its command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from drimbox.accounts import Role
from drimbox.cli import cli
from drimbox.commands.common import Failed
from drimbox.commands.process import AdminClient
from drimbox.web.routes import AUDITOR, ROUTES, allowed

pytestmark = pytest.mark.requirement("DB.CS.06", "DB.SO.21", "DB.SO.24", "DB.SO.28", "DB.SO.87")
#: Commands that speak to the process: what they are given here, and the routes they are made of.
SPEAKING: dict[str, tuple[str, tuple[str, ...]]] = {
    "status": ("", ("GET /status",)),
    "sites": ("", ("GET /sites",)),
    "doctor": ("", ("POST /doctor", "GET /doctor")),
    "queue list": ("inbox", ("GET /queues/{queue}",)),
    "queue show": ("inbox 1", ("GET /queues/{queue}/{id}", "POST /queues/{queue}/{id}/raw")),
    "queue retry": ("inbox 1", ("POST /queues/{queue}/{id}/retry", "POST /queues/{queue}/retry")),
    "queue drop": ("inbox 1 --reason essai", ("POST /queues/{queue}/{id}/drop",)),
    "notices list": ("", ("GET /notices",)),
    "notices ack": ("1", ("POST /notices/{id}/acknowledge",)),
    "notices test": ("", ("POST /notices/test",)),
    "whitelist show": ("", ("GET /whitelist",)),
    "whitelist refresh": ("", ("POST /whitelist/refresh",)),
    "certificates show": ("", ("GET /certificates",)),
    "certificates reload": ("", ("POST /certificates/reload",)),
    "resync start": ("--site radio", ("POST /walks",)),
    "resync status": ("--site radio", ("GET /walks",)),
    "resync list": ("", ("GET /walks",)),
    "resync report": ("1", ("GET /walks/{number}",)),
    "resync studies": ("1", ("GET /walks/{number}/studies",)),
    "resync stop": ("--site radio", ("GET /walks", "POST /walks/{number}/stop")),
    "resync confirm": ("1", ("POST /walks/{number}/confirm",)),
    "resync abandon": ("1", ("POST /walks/{number}/abandon",)),
    "url-change start": ("--site radio", ("POST /walks",)),
    "url-change status": ("", ("GET /addresses",)),
    "url-change stop": ("--site radio", ("GET /walks", "POST /walks/{number}/stop")),
    "archive export": ("--to /srv", ("POST /archive/export", "GET /archive")),
    "archive import": ("/srv --site radio", ("POST /archive/import", "GET /archive")),
    "archive status": ("", ("GET /archive",)),
    "speedtest": ("--site radio", ("POST /speedtest/{site}", "GET /speedtest")),
    "speedtest results": ("", ("GET /speedtest/results", "GET /speedtest/measures")),
    "statistics show": ("", ("GET /statistics",)),
    "statistics export": ("--raw", ("GET /statistics/raw",)),
    "homologation load": ("/srv/kos.dcm", ("POST /homologation/load", "GET /archive")),
    "homologation clear": ("", ("POST /homologation/clear",)),
    "homologation status": ("", ("GET /homologation",)),
}
#: Commands that work beside the process, and the routes that do the same within it.
BESIDE: dict[str, tuple[str, ...]] = {
    "audit search": ("GET /audit",),
    "audit verify": ("POST /audit/verification", "GET /audit/verification"),
    "backup": ("POST /backup", "GET /backup", "GET /backup/files"),
    # Putting a backup in place is done while the gateway is stopped.
    "restore": ("POST /backup/check",),
    "pacs echo": ("POST /doctor",),
    "pacs find": ("POST /doctor",),
    "check-config": ("POST /doctor",),
    "version": ("GET /status",),
}
#: Commands about files and peers: nothing of a gateway is touched. Accounts are a file of the machine's.
ALONE = {
    "accounts add",
    "accounts list",
    "accounts remove",
    "backup-key",
    "inspect kos",
    "inspect report",
    "validate archive",
    "validate cross",
    "validate kos",
    "validate wado-request",
    "validate wado-response",
    "validate xds",
    "wado get",
    "whitelist verify",
}
#: Routes that are no command's: probes, metrics, and who one is.
NOBODYS = {"GET /live", "GET /ready", "GET /metrics", "GET /account"}


def leaves(command: click.Command, name: str = "") -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield name
        return
    if command.invoke_without_command and name:
        yield name
    for word, each in command.commands.items():
        yield from leaves(each, f"{name} {word}".strip())


def test_no_command_and_no_route_is_left_out() -> None:
    found = list(leaves(cli))
    assert sorted(found) == sorted([*SPEAKING, *BESIDE, *ALONE])
    named = {route for _, routes in SPEAKING.values() for route in routes}
    named |= {route for routes in BESIDE.values() for route in routes}
    assert named | NOBODYS == {f"{each.method} {each.path}" for each in ROUTES}


@pytest.mark.parametrize("command", SPEAKING)
def test_a_command_begins_with_its_route(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, routes = SPEAKING[command]
    asked: list[tuple[str, str]] = []

    def ask(self: AdminClient, method: str, path: str, *_: Any, **__: Any) -> Any:
        asked.append((method, path))
        raise Failed("enough")

    monkeypatch.setattr(AdminClient, "ask", ask)
    CliRunner().invoke(cli, [*command.split(), *given.split(), "--admin", "127.0.0.1:1"])
    (method, path) = asked[0]
    parts = path.partition("?")[0].split("/")
    wanted, template = routes[0].split()
    pattern = template.split("/")
    assert method == wanted
    assert len(parts) == len(pattern)
    assert all(one == other or other.startswith("{") for one, other in zip(parts, pattern, strict=True))


def test_what_changes_something_is_the_operators_and_what_is_unknown_too() -> None:
    for each in ROUTES:
        assert (each.role is Role.OPERATOR) is (each.method == "POST"), each
        assert allowed(Role.OPERATOR, each.method, each.path)
        assert allowed(Role.AUDITOR, each.method, each.path) is ((each.method, each.path) in AUDITOR)
    assert not allowed(Role.AUDITOR, "GET", "/unknown")
    assert not allowed(Role.AUDITOR, "DELETE", "/status")
