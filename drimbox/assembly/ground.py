"""What every part of the gateway stands on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred

from drimbox.clock import SystemClock
from drimbox.config import Config
from drimbox.stores import Stores

T = TypeVar("T")


class Defer(Protocol):
    """Runs work off the reactor thread."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        """Return what fires with the result."""


@attrs.frozen
class Ground:
    """What every part stands on."""

    config: Config
    reactor: Any
    clock: SystemClock
    stores: Stores
    #: Runs work off the reactor thread.
    defer: Defer
