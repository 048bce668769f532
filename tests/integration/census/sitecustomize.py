"""Lets a test count what lives in a gateway process: Python imports this module by its name at start.

On SIGUSR2 the process collects its garbage, gives free memory back to the system, and writes what is
left to the file that DRIMBOX_CENSUS names: objects by type, coroutines by function, timers and sockets of
the reactor. It does so between two events of the reactor: a signal comes upon things that are being made or
taken apart, and upon locks that a finalizer would wait for. On SIGUSR1 it writes where every thread stands
to the file of that name and `.stacks`, whatever it is doing. A leak of one object a request shows after a
dozen requests, where the size of the process shows it after thousands. The gateway itself knows nothing of
it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import signal
import sys
import traceback
from collections import Counter
from types import CoroutineType
from typing import Any

#: Modules whose objects are counted.
COUNTED = ("drimbox.", "twisted.internet", "twisted.protocols", "twisted.web", "OpenSSL.")


def name(thing: Any) -> str | None:
    """Return what an object counts as, None for those that do not."""
    # Not `isinstance`, which asks the thing: one that stands for another that is gone raises.
    kind = type(thing)
    if kind is CoroutineType:
        return f"coroutine {thing.__qualname__}"
    module = getattr(kind, "__module__", None)
    if isinstance(module, str) and module.startswith(COUNTED):
        return f"{module}.{kind.__qualname__}"
    return None


def census() -> dict[str, object]:
    """Count."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    names = (name(thing) for thing in gc.get_objects())
    found: dict[str, object] = dict(Counter(each for each in names if each is not None))
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if reactor is not None:
        found["timers"] = len(reactor.getDelayedCalls())
        found["readers"] = len(reactor.getReaders())
        found["writers"] = len(reactor.getWriters())
    return found


def write() -> None:
    """Write the census where it is looked for, whole or not at all; or why there is none."""
    target = os.environ["DRIMBOX_CENSUS"]
    try:
        found = census()
    except Exception:
        found = {"error": traceback.format_exc()}
    with open(f"{target}.new", "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.replace(f"{target}.new", target)


def answer(number: int, frame: object) -> None:
    """Count as soon as the reactor is between two events."""
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if reactor is None:
        write()
    else:
        reactor.callFromThread(write)


if "DRIMBOX_CENSUS" in os.environ:
    signal.signal(signal.SIGUSR2, answer)
    stacks = os.open(f"{os.environ['DRIMBOX_CENSUS']}.stacks", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
