"""The nodes that share a store: who is there, and which of them does what only one may do at a time.

Theory of operation. A *node* is one process of the gateway. It joins under its name, which no two may have:
rows of the queues are held in that name. What it does alone for all (notices that leave, walks, purges) is
a *role*, a row that whoever comes first takes. Name and roles are leases: `beat` moves them forward while
the process lives, and those of a dead one end by themselves. There is no leader and no election: a role
that is free is taken by the next node that looks.

A process that was killed and starts again must not wait for the end of its own lease: the state folder has
an identity (`Home`) that only one process at a time can own, so whoever owns it knows its predecessor dead.

Leases count by the database's clock (`leases`), however wrong that of a node is; `beat` says how far it is
from the database's, and that the schema is no longer the one this process knows: a later version may have
upgraded the store beneath it.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
from sqlalchemy import Connection, delete, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from drimbox.ports import Clock
from drimbox.store.database import Database
from drimbox.store.errors import NodeRefused
from drimbox.store.leases import LeaseClock, database_now, seated
from drimbox.store.revision import newest
from drimbox.store.schema import node, node_role

#: The file of a state folder that says which one it is.
HOME = "node.id"
#: After which a node that died without leaving is no longer listed.
FORGOTTEN = timedelta(days=30)


@attrs.frozen
class SeenNode:
    """One node, as the store knows it."""

    name: str
    version: str
    since: datetime
    held_until: datetime
    #: What it does alone for all.
    roles: tuple[str, ...]
    #: Schema revision its program knows and where its DICOM door listens; empty of an earlier version.
    revision: str = ""
    dicom: str = ""
    #: Seconds by which its clock is ahead of the database's.
    ahead: float = 0.0
    #: AE titles it answers to, `PACS/TITLE`.
    titles: tuple[str, ...] = ()


def read_nodes(connection: Connection) -> list[SeenNode]:
    """Return the nodes of a store, those that died without leaving too, by name."""
    roles: dict[str, list[str]] = {}
    for row in connection.execute(select(node_role).order_by(node_role.c.name)):
        roles.setdefault(row.node, []).append(row.name)
    return [
        SeenNode(
            name=row.name,
            version=row.version,
            since=row.since,
            held_until=row.held_until,
            roles=tuple(roles.get(row.name, ())),
            revision=row.revision,
            dicom=row.dicom,
            ahead=row.ahead,
            titles=tuple(json.loads(row.titles)),
        )
        for row in connection.execute(select(node).order_by(node.c.name))
    ]


class Home:
    """The identity of a state folder, owned by this process until it ends or lets go.

    Raises `NodeRefused` when another process owns it, `OSError` when the file cannot be written. Blocks.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / HOME
        self._file: int | None = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.id = os.pread(self._file, 64, 0).decode("ascii", "replace").strip()
            if not self.id:
                self.id = uuid.uuid4().hex
                os.pwrite(self._file, f"{self.id}\n".encode("ascii"), 0)
                os.fsync(self._file)
        except BlockingIOError:
            self.release()
            raise NodeRefused(
                f"Un autre processus travaille déjà dans {folder} : "
                "donner à chaque nœud son [drimbox] state_dir."
            ) from None
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let another process own it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Nodes:
    """This node among those of the store.

    `titles` are the AE titles it answers to, `PACS/TITLE`; `dicom` is where its DICOM door listens.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        name: str,
        home: str,
        version: str,
        lease: float,
        titles: Collection[str] = (),
        dicom: str = "",
        shared: bool = False,
    ) -> None:
        """`shared`: leases count by the database's clock."""
        self._database = database
        self._clock = clock
        self._leases = LeaseClock(clock, shared=shared)
        # Once: a later version may be installed over this one while it runs.
        self._revision = newest()
        self.name = name
        self._home = home
        self._version = version
        self._lease = timedelta(seconds=lease)
        self._titles = sorted(titles)
        self._dicom = dicom
        self._dialect: Any = sqlite if database.dialect == "sqlite" else postgresql
        #: Roles of this node, and until when they surely are.
        self._roles: dict[str, datetime] = {}

    async def join(self) -> None:
        """Enter under our name.

        Raises `NodeRefused` while a living node has the name, or answers to one of our AE titles.
        """
        try:
            await self._database.run(self._join)
        except IntegrityError:
            raise NodeRefused(self._taken(None)) from None

    async def beat(self) -> timedelta:
        """Move name and roles forward; return how far our clock is ahead of the database's.

        Raises `NodeRefused` when the name is another's by now, or the schema that of another version.
        """
        until = self._clock.now() + self._lease
        ahead, roles, revision = await self._database.run(self._beat)
        self._roles = dict.fromkeys(roles, until)
        if revision != self._revision:
            raise NodeRefused(
                f"La base est passée au schéma {revision}, le nœud « {self.name} » ne connaît que le "
                f"{self._revision} : il ne prend plus de travail. L'arrêter et y installer la même version "
                "que sur les autres."
            )
        return ahead

    async def leave(self) -> None:
        """Give name and roles back: others need not wait for their end."""
        self._roles = {}
        await self._database.run(self._leave)

    async def resign(self) -> None:
        """Give the roles back, and stay: another node does what this one may not do now."""
        self._roles = {}
        await self._database.run(self._resign)

    async def leads(self, role: str) -> bool:
        """Say whether this node has a role, taking it when it is free."""
        if self.holds(role):
            return True
        until = self._clock.now() + self._lease
        if await self._database.run(lambda connection: self._take(connection, role)):
            self._roles[role] = until
            return True
        return False

    def holds(self, role: str) -> bool:
        """Say whether this node surely has a role now."""
        until = self._roles.get(role)
        return until is not None and self._clock.now() < until

    async def seen(self) -> list[SeenNode]:
        """Return the nodes of the store, those that died without leaving too."""
        return await self._database.read(read_nodes)

    def alive(self, seen: SeenNode) -> bool:
        """Say whether a node shows that it lives."""
        return self._clock.now() <= seen.held_until

    # -- in a transaction --------------------------------------------------------------------------

    def _join(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            # One at a time: each sees the titles of the others.
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('drimbox.node'))"))
        now = self._leases.now(connection)
        for row in connection.execute(select(node).where(node.c.held_until >= now)).all():
            if row.home == self._home:
                continue
            if row.name == self.name:
                raise NodeRefused(self._taken(row.held_until))
            for title in sorted(set(json.loads(row.titles)) & set(self._titles)):
                raise NodeRefused(
                    f"L'AE title {title} est déjà celui du nœud « {row.name} » : les images demandées par "
                    "l'un arriveraient chez l'autre. Donner à chaque nœud son [site.pacs] pool."
                )
        # Whoever had our name, or our folder under another name, is dead.
        dead = or_(node.c.name == self.name, node.c.home == self._home, node.c.held_until < now - FORGOTTEN)
        names = list(connection.execute(delete(node).where(dead).returning(node.c.name)).scalars())
        connection.execute(delete(node_role).where(node_role.c.node.in_(names)))
        connection.execute(
            node.insert().values(
                name=self.name,
                home=self._home,
                version=self._version,
                titles=json.dumps(self._titles),
                since=now,
                held_until=now + self._lease,
                revision=self._revision,
                dicom=self._dicom,
                ahead=self._ahead(connection).total_seconds(),
            )
        )

    def _beat(self, connection: Connection) -> tuple[timedelta, list[str], str]:
        ahead = self._ahead(connection)
        until = self._leases.now(connection) + self._lease
        mine = update(node).where(node.c.name == self.name, node.c.home == self._home)
        values = {"held_until": until, "ahead": ahead.total_seconds()}
        if connection.execute(mine.values(values)).rowcount != 1:
            # It ended, and somebody has swept it or taken the name.
            self._join(connection)
        kept = update(node_role).where(node_role.c.node == self.name).values(held_until=until)
        roles = list(connection.execute(kept.returning(node_role.c.name)).scalars())
        return ahead, roles, self._schema(connection)

    def _schema(self, connection: Connection) -> str:
        """Return the revision of the store, which nobody but its owner changes on SQLite."""
        if connection.dialect.name != "postgresql":
            return self._revision
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())

    def _ahead(self, connection: Connection) -> timedelta:
        """Return how far our clock is ahead of the database's, which on SQLite is the same."""
        if connection.dialect.name != "postgresql":
            return timedelta()
        return self._clock.now() - database_now(connection)

    def _take(self, connection: Connection, role: str) -> bool:
        now = self._leases.now(connection)
        values = {"node": self.name, "taken_at": now, "held_until": now + self._lease}
        free = or_(node_role.c.node == self.name, node_role.c.held_until < now)
        change = update(node_role).where(node_role.c.name == role, free).values(values)
        if connection.execute(change).rowcount == 1:
            return True
        add = self._dialect.insert(node_role).values(name=role, **values).on_conflict_do_nothing()
        return connection.execute(add.returning(node_role.c.name)).first() is not None

    def _resign(self, connection: Connection) -> None:
        # Whoever has our name now has its roles too.
        mine = seated(self.name, self._home)
        connection.execute(delete(node_role).where(node_role.c.node == self.name, mine))

    def _leave(self, connection: Connection) -> None:
        self._resign(connection)
        connection.execute(delete(node).where(node.c.name == self.name, node.c.home == self._home))

    def _taken(self, until: datetime | None) -> str:
        when = f" (jusqu'à {until.astimezone():%H:%M:%S} s'il est arrêté)" if until is not None else ""
        return (
            f"Un autre nœud travaille sous le nom « {self.name} » sur cette base{when} : "
            "donner à chaque nœud son [drimbox] node."
        )
