"""The schema comes from the revisions, whole or not at all, with a copy before any change."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from twisted.internet import reactor

import drimbox
from drimbox.store import upgrade as upgrading
from drimbox.store.database import Database
from drimbox.store.engine import migration_engine
from drimbox.store.errors import StoreDamaged, StoreTooNew
from drimbox.store.schema import metadata
from drimbox.store.upgrade import configuration, upgrade

#: The newest revision of the package, and the one a test adds behind it.
HEAD = str(ScriptDirectory.from_config(configuration()).get_current_head())
NEXT = f"{int(HEAD) + 1:04}"


@pytest.fixture
def url(empty_url: str) -> str:
    return empty_url


def test_an_empty_store_is_created_and_opening_again_changes_nothing(url: str) -> None:
    target = make_url(url)
    first = upgrade(target)
    assert (first.before, first.backup) == (None, None)
    again = upgrade(target)
    assert (again.before, again.after, again.backup) == (first.after, first.after, None)


def test_the_revisions_make_exactly_the_tables_of_the_schema(url: str) -> None:
    target = make_url(url)
    upgrade(target)
    engine = migration_engine(target)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        made = inspect(connection)
        for table in metadata.tables.values():
            checks = {check["name"] for check in made.get_check_constraints(table.name)}
            wanted = {str(one.name) for one in table.constraints if isinstance(one, CheckConstraint)}
            assert checks == wanted
    engine.dispose()


# --- an upgrade from an older schema --------------------------------------------------------------


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the revisions where the test adds the next one; `upgrade` uses it."""
    folder = tmp_path / "migrations"
    shutil.copytree(Path(drimbox.__file__).parent / "store" / "migrations", folder)
    original = upgrading.configuration

    def configuration(connection: Any = None) -> Any:
        config = original(connection)
        config.set_main_option("script_location", str(folder))
        return config

    monkeypatch.setattr(upgrading, "configuration", configuration)
    return folder / "versions"


def _revision(folder: Path, body: str) -> None:
    header = f"""
        import sqlalchemy as sa
        from alembic import op
        revision, down_revision, branch_labels, depends_on = "{NEXT}", "{HEAD}", None, None
        def upgrade():
    """
    text_ = textwrap.dedent(header) + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    (folder / f"r{NEXT}_test.py").write_text(text_, encoding="utf-8")


def _fill(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO inbox (ris, peer, control_id, raw, received_at, due_at)"
            " VALUES ('r', 'p', 'c', x'00', '2026-01-12 09:30:01.000000', '2026-01-12 09:30:01.000000')"
        )
        connection.execute(
            "INSERT INTO feed_job (message_id, ris, study_uid, created_at, due_at)"
            " VALUES (1, 'r', '2.25.1', '2026-01-12 09:30:01.000000', '2026-01-12 09:30:01.000000')"
        )
    connection.close()


def _columns(path: Path, table: str) -> set[str]:
    connection = sqlite3.connect(path)
    try:
        return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    finally:
        connection.close()


_BATCH = """
    with op.batch_alter_table("inbox") as batch:
        batch.add_column(sa.Column("note", sa.Text()))
        batch.alter_column("peer", type_=sa.String(200))
"""


def test_an_upgrade_copies_the_store_first_and_keeps_the_rows(tmp_path: Path, next_version: Path) -> None:
    path = tmp_path / "drimbox.db"
    target = make_url(f"sqlite:///{path}")
    upgrade(target)
    _fill(path)
    _revision(next_version, _BATCH)
    done = upgrade(target)
    assert (done.before, done.after) == (HEAD, NEXT)
    assert done.backup is not None
    assert stat.S_IMODE(done.backup.stat().st_mode) == 0o600
    assert "note" in _columns(path, "inbox")
    assert "note" not in _columns(done.backup, "inbox")
    for file in (path, done.backup):
        connection = sqlite3.connect(file)
        assert connection.execute("SELECT count(*) FROM inbox, feed_job").fetchone() == (1,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    assert list(tmp_path.glob("*.part*")) == []


@pytest.mark.parametrize("revision", ["0001"])
def test_a_store_of_every_released_revision_keeps_its_rows(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "drimbox.db"
    target = make_url(f"sqlite:///{path}")
    engine = migration_engine(target)
    with engine.begin() as connection:
        command.upgrade(configuration(connection), revision)
    engine.dispose()
    _fill(path)
    before = _rows(path)
    done = upgrade(target)
    assert (done.before, done.after) == (revision, HEAD)
    assert done.backup is not None
    assert _rows(done.backup) == before
    after = _rows(path)
    before["alembic_version"] = [{"version_num": HEAD}]
    # A later revision may add columns; what was there stays as it was.
    kept = {
        table: [
            {column: row[column] for column in old} for old, row in zip(rows, after[table], strict=True)
        ]
        for table, rows in before.items()
    }
    assert kept == before
    assert set(after) == {table.name for table in metadata.tables.values()} | {"alembic_version"}


def _rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table of ours, by column."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")]
            for (name,) in tables
            if not name.startswith("sqlite_")
        }


def test_a_failed_upgrade_leaves_the_old_schema_and_says_so(tmp_path: Path, next_version: Path) -> None:
    path = tmp_path / "drimbox.db"
    target = make_url(f"sqlite:///{path}")
    upgrade(target)
    _fill(path)
    _revision(next_version, _BATCH + '\n    op.execute("SELECT nothing FROM nowhere")')
    with pytest.raises(OperationalError):
        upgrade(target)
    assert "note" not in _columns(path, "inbox")
    assert list(tmp_path.glob(f"drimbox.db.{HEAD}-*.bak"))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)
    assert connection.execute("SELECT count(*) FROM feed_job").fetchone() == (1,)
    connection.close()


_KILLED = """
import os, signal, sys
from sqlalchemy.engine import make_url
from drimbox.store import upgrade as upgrading
original = upgrading.configuration
def configuration(connection=None):
    config = original(connection)
    config.set_main_option("script_location", sys.argv[2])
    return config
upgrading.configuration = configuration
upgrading.upgrade(make_url(sys.argv[1]))
"""


@pytest.mark.requirement("DB.SO.24")
def test_an_upgrade_killed_in_the_middle_is_done_by_the_next_start(
    url: str, tmp_path: Path, next_version: Path
) -> None:
    """However often: the store stays as it was, and the copies do not fill the disk."""
    target = make_url(url)
    upgrade(target)
    engine = migration_engine(target)
    with engine.begin() as connection:
        values = "('site', '2.25.1', '2026-01-12 09:30:01')"
        connection.execute(text(f"INSERT INTO cache_forget (site, study_uid, at) VALUES {values}"))
    # Half of the upgrade is made, and whoever makes it dies.
    half = 'op.add_column("inbox", sa.Column("half", sa.Text()))\nop.execute("DELETE FROM cache_forget")\n'
    _revision(next_version, half + "import os\nimport signal\nos.kill(os.getpid(), signal.SIGKILL)")
    left = tmp_path / f"drimbox.db.{HEAD}-20200101T000000Z.bak.part"
    # Of whoever administers it.
    own = tmp_path / f"drimbox.db.{HEAD}-mardi.bak"
    own.touch()
    for _ in range(2):
        left.touch()
        command_ = [sys.executable, "-c", _KILLED, url, str(next_version.parent)]
        done = subprocess.run(command_, capture_output=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        with engine.begin() as connection:
            assert "half" not in {each["name"] for each in inspect(connection).get_columns("inbox")}
            assert connection.execute(text("SELECT count(*) FROM cache_forget")).scalar() == 1
    _revision(next_version, 'op.add_column("inbox", sa.Column("whole", sa.Text()))')
    done_ = upgrade(target)
    assert (done_.before, done_.after) == (HEAD, NEXT)
    with engine.begin() as connection:
        assert "whole" in {each["name"] for each in inspect(connection).get_columns("inbox")}
        assert connection.execute(text("SELECT count(*) FROM cache_forget")).scalar() == 1
    engine.dispose()
    copies = [done_.backup] if done_.backup is not None else []
    assert (len(copies) == 1) is (target.get_backend_name() == "sqlite")
    found = {path for path in tmp_path.iterdir() if ".bak" in path.name}
    assert found == {own, *copies, *([] if copies else [left])}


def test_an_upgrade_that_breaks_references_is_undone(tmp_path: Path, next_version: Path) -> None:
    path = tmp_path / "drimbox.db"
    target = make_url(f"sqlite:///{path}")
    upgrade(target)
    _fill(path)
    _revision(next_version, 'op.execute("DELETE FROM inbox")')
    with pytest.raises(StoreDamaged, match="références"):
        upgrade(target)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM inbox").fetchone() == (1,)
    connection.close()


def test_a_store_of_a_later_version_is_refused(url: str) -> None:
    target = make_url(url)
    upgrade(target)
    engine = migration_engine(target)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreTooNew, match="9999"):
        upgrade(target)


def test_a_database_of_another_program_is_refused(url: str) -> None:
    target = make_url(url)
    engine = migration_engine(target)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE something (id integer)"))
    engine.dispose()
    with pytest.raises(StoreDamaged, match="DRIMbox"):
        upgrade(target)


@pytest_twisted.ensureDeferred
async def test_garbage_instead_of_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "drimbox.db"
    path.write_bytes(b"this is no database, but it is somebody's file" * 100)
    before = path.read_bytes()
    database = Database(f"sqlite:///{path}", reactor=reactor)
    with pytest.raises(Exception, match="not a database"):
        await database.open()
    assert path.read_bytes() == before


@pytest.mark.slow
def test_the_revisions_travel_in_the_wheel(tmp_path: Path) -> None:
    root = Path(drimbox.__file__).parent.parent
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=root,
        capture_output=True,
        timeout=100,
        check=False,
    )
    if built.returncode != 0:
        pytest.skip("hatchling cannot build here")
    wheel = next(tmp_path.glob("*.whl"))
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    script = (
        "import sys; from sqlalchemy.engine import make_url; from drimbox.store import upgrade as u;"
        "assert u.__file__.startswith(sys.argv[1]), u.__file__;"
        "print(u.upgrade(make_url('sqlite:///' + sys.argv[2])).after)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(installed), str(tmp_path / "w.db")],
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == HEAD
