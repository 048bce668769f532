"""A process that records what another one left until it is killed; its argument is the URL of the store.

It writes a line to standard output before each delivery it records, and waits for one on standard input.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from drimbox.clock import SystemClock
from drimbox.store.database import Database
from drimbox.store.openrecords import OpenRecords


class Telling(OpenRecords):
    """Asks before each one."""

    def _record(self, key: str, connection: Any) -> Any:
        print(key, flush=True)
        sys.stdin.readline()
        return super()._record(key, connection)


async def main(url: str) -> None:
    database = Database(url, reactor=reactor)
    await database.open()
    await Telling(database, clock=SystemClock(), node_name="a", home="h").tend(others=False)


if __name__ == "__main__":
    Deferred.fromCoroutine(main(sys.argv[1])).addErrback(lambda failure: failure.printTraceback())
    reactor.run()  # type: ignore[attr-defined]
