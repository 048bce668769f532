"""A private PostgreSQL server for tests and bench: a cluster in a temporary folder, on a Unix socket alone.

The server refuses to run as root, who lends it to the `postgres` account that Debian's package makes.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from sqlalchemy import create_engine, text

_NAMES = itertools.count(1)
_OWNER = "drimbox"


def find_programs() -> Path | None:
    """Return the folder of initdb, pg_ctl and postgres; None when PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3])
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


class Absent(Exception):
    """There is no PostgreSQL to be had here; the text says why."""


class Cluster:
    """One server. With `durable`, a commit waits for the disk as in production."""

    def __init__(self, *, durable: bool = False) -> None:
        programs = find_programs()
        if programs is None:
            raise Absent("no PostgreSQL server program")
        self._control = str(programs / "pg_ctl")
        #: Short: the path of a Unix socket may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="drimbox-pg-"))
        self._data = str(self.folder / "data")
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            try:
                owner = pwd.getpwnam("postgres")
            except KeyError:
                shutil.rmtree(self.folder)
                raise Absent("root without a postgres account to run the server") from None
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            self._prefix = ["runuser", "-u", "postgres", "--"]
        self._options = (
            f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c max_connections=60"
        )
        if not durable:
            self._options += " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
        initdb = str(programs / "initdb")
        self._call(initdb, "-D", self._data, "-A", "trust", "-U", _OWNER, "-E", "UTF8", "--locale=C", "-N")

    def demand_password(self, role: str) -> None:
        """Let nobody in as `role` without its password; before the server starts."""
        rules = Path(self._data, "pg_hba.conf")
        rules.write_text(f"local all {role} scram-sha-256\n{rules.read_text('utf-8')}", "utf-8")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        log = str(self.folder / "log")
        self._call(self._control, "-D", self._data, "-w", "-l", log, "-o", self._options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server: "immediate" is as if it had crashed, "fast" cuts everybody off in order."""
        self._call(self._control, "-D", self._data, "-w", "-m", mode, "stop")

    def remove(self) -> None:
        """Stop it if it runs, and leave nothing behind."""
        with suppress(subprocess.SubprocessError):  # it may be stopped already
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{_OWNER}@/{name}?host={self.folder}"

    def create(self, template: str = "template1") -> str:
        """Create a database, a copy of another that nobody is connected to; return its name."""
        name = f"test{next(_NAMES)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside any transaction."""
        engine = create_engine(self.url(database), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()

    def _call(self, *command: str) -> None:
        subprocess.run(
            [*self._prefix, *command],
            check=True,
            timeout=60,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
