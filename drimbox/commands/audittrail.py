"""What `drimbox audit` does once it is called; apart, because a database takes its time to be loaded.

Who may read the store may search it; each search is written in the trail first, with the account that
makes it (DB.CS.10).
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import attrs
import click

from drimbox.audit.atna import audit_source_id
from drimbox.audit.kinds import EVENTS, OUTCOMES
from drimbox.audit.listing import CSV_HEADS, XML_HEAD, XML_TAIL, csv_row, text_line, xml_lines
from drimbox.audit.ontrail import trail_read
from drimbox.clock import SystemClock
from drimbox.commands.common import Failed, print_csv, print_json, refused
from drimbox.config import Config
from drimbox.configfile import ConfigErrors, load
from drimbox.ports import AuditEvent
from drimbox.redaction import escape_control
from drimbox.secretfile import SecretUnusable
from drimbox.store.auditchain import ChainHead
from drimbox.store.auditdesk import AuditDesk
from drimbox.store.auditsearch import AuditQuery, AuditRecord
from drimbox.store.engine import parse_url
from drimbox.store.errors import StoreError

#: Good events between two words of how far a verification is.
_TOLD_EVERY = 100_000


@attrs.frozen
class Search:
    """A search as the command line says it."""

    start: datetime | None
    end: datetime | None
    ins: str
    study: str
    #: A key of `EVENTS` and one of `OUTCOMES`, None for any.
    event: str | None
    outcome: str | None
    #: None for all.
    limit: int | None
    before: int | None
    #: "text", "csv" or "xml".
    form: str

    def query(self) -> AuditQuery:
        """Return what the store is asked."""
        event_id, event_types = EVENTS[self.event] if self.event else ("", ())
        outcomes = OUTCOMES[self.outcome] if self.outcome else ()
        return AuditQuery(self.start, self.end, self.ins, self.study, event_id, event_types, outcomes)

    def criteria(self) -> tuple[tuple[str, str], ...]:
        """Return the options given, for the trail."""
        given = attrs.asdict(self)
        given["from"], given["to"] = given.pop("start"), given.pop("end")
        given["format"] = given.pop("form")
        return tuple((key, str(value)) for key, value in given.items() if value)


def search_trail(search: Search, config_path: Path) -> None:
    """Audit the search, then print what it finds. Raises `Failed`."""
    config = configuration(config_path)
    with desk(config.store_url, config.store.password_file) as trail:
        own = trail.record(_event(search, config), SystemClock())
        # What is asked for does not begin with the question itself.
        before = own if search.before is None else min(search.before, own)
        found = _Counted(trail.search(search.query(), limit=search.limit, before=before))
        _show(found, search.form, audit_source_id(config.drimbox.system_id))
    if found.count and found.count == search.limit:
        click.echo(f"{found.count} événement(s) ; la suite : --before {found.last}", err=True)
    elif not found.count:
        click.echo("Aucun événement.", err=True)


def verify_trail(known: tuple[int, str] | None, config_path: Path, *, as_json: bool) -> None:
    """Verify the chain and say what was found. Raises `Failed` at a fault."""
    told = 0

    def tell(checked: int) -> None:
        nonlocal told
        if checked - told >= _TOLD_EVERY:
            told = checked
            click.echo(f"{checked} événements vérifiés", err=True)

    config = configuration(config_path)
    with desk(config.store_url, config.store.password_file) as trail:
        check = trail.verify(ChainHead(*known) if known else None, tell)
    if as_json:
        print_json(check.facts())
        if check.fault is not None:
            raise click.exceptions.Exit(1)
        return
    if check.fault is not None:
        raise Failed(f"défaut à l'événement {check.fault_id} : {check.fault} ({check.checked} bons avant).")
    click.echo(f"Chaîne intacte : {check.checked} événements vérifiés.")
    if check.anchor.last_id:
        click.echo(f"Conservation : événements 1 à {check.anchor.last_id} effacés, effacement audité.")
    click.echo(f"Dernier maillon : {check.head.last_id}:{check.head.hash}")


def _event(search: Search, config: Config) -> AuditEvent:
    machine = socket.gethostname()
    return trail_read(
        user=account(),
        machine=machine,
        program="drimbox audit search",
        trail=f"urn:drimbox:{config.drimbox.system_id}:audit",
        criteria=search.criteria(),
        patient_ins=search.ins,
        study_uid=search.study,
    )


def account() -> str:
    """Return the account that runs the command, and who became it by sudo."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    sudo = os.environ.get("SUDO_USER", "")[:64]
    return f"{name} (sudo : {sudo})" if sudo and sudo != name else name


def configuration(path: Path) -> Config:
    """Read the configuration, not the files it names. Raises `Failed`."""
    try:
        return load(path, files=False)
    except ConfigErrors as errors:
        raise refused(errors) from None


@contextmanager
def desk(store_url: str, password_file: Path | None = None) -> Iterator[AuditDesk]:
    """Open the trail of a store. Raises `Failed`."""
    try:
        with AuditDesk(parse_url(store_url, password_file)) as opened:
            yield opened
    except (StoreError, SecretUnusable) as error:
        raise Failed(escape_control(str(error))) from None


class _Counted:
    """Passes events on, and remembers how many they were and the number of the last."""

    def __init__(self, records: Iterator[AuditRecord]) -> None:
        self._records = records
        self.count = self.last = 0

    def __iter__(self) -> Iterator[AuditRecord]:
        for record in self._records:
            self.count, self.last = self.count + 1, record.id
            yield record


def _show(records: Iterable[AuditRecord], form: str, source_id: str) -> None:
    if form == "csv":
        print_csv(CSV_HEADS, (csv_row(one.id, one.instant, one.event, one.hash) for one in records))
        return
    if form == "xml":
        click.echo(XML_HEAD)
    for one in records:
        if form == "xml":
            click.echo(xml_lines(one.id, one.instant, one.event, one.hash, source_id))
        else:
            click.echo(text_line(one.id, one.instant, one.event))
    if form == "xml":
        click.echo(XML_TAIL)
