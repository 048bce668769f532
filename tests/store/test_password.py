"""The password of PostgreSQL is changed while the gateway runs: its file is read at each new connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import OperationalError
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.sim.postgres import Absent, Cluster
from drimbox.store.database import Database
from drimbox.store.upgrade import upgrade

pytestmark = [pytest.mark.requirement("DB.SO.35"), pytest.mark.peer("postgres")]
ROLE = "guarded"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server that asks one role for its password."""
    try:
        cluster = Cluster()
    except Absent as reason:
        pytest.skip(str(reason))
    try:
        cluster.demand_password(ROLE)
        cluster.start()
        cluster.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'première phrase'")
        yield cluster
    finally:
        cluster.remove()


def who(connection: Connection) -> str:
    return str(connection.execute(text("SELECT current_user")).scalar_one())


@pytest_twisted.ensureDeferred
async def test_a_changed_password_counts_at_the_next_connection(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.create()
    upgrade(make_url(cluster.url(name)))
    cluster.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}", name)
    secret = tmp_path / "secret"
    secret.write_text("première phrase\n", "utf-8")
    url = cluster.url(name).replace("drimbox@", f"{ROLE}@")
    store = Database(url, reactor=reactor, threads=1, password_file=secret)
    await store.open()

    async def cut() -> None:
        """End every connection of the role, as a server does that is restarted."""
        ended = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = '{ROLE}'"
        await deferToThread(cluster.execute, ended)

    try:
        assert await store.run(who) == ROLE
        await deferToThread(cluster.execute, f"ALTER ROLE {ROLE} PASSWORD 'seconde phrase'")
        # Who is in stays in; who comes anew must know it.
        assert await store.run(who) == ROLE
        await cut()
        with pytest.raises(OperationalError) as refused:
            await store.run(who)
        assert "phrase" not in str(refused.value)
        secret.unlink()
        with pytest.raises(OperationalError, match="lecture impossible"):
            await store.run(who)
        secret.write_text("seconde phrase\n", "utf-8")
        assert await store.run(who) == ROLE
        await cut()
        assert await store.run(who) == ROLE
    finally:
        await store.close()
        await deferToThread(cluster.drop, name)
