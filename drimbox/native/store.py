"""What an archive must be able to do for DRIMbox to be built into it: one class of three methods.

Theory of operation. A PACS *sends* its images when it is asked to; a native archive is *read*. The
editor of an archive derives one class from `ImageStore` and names it in the configuration (docs/native.md).
Everything else is done around it, by the same code as for a PACS: access tokens, whitelist, KOS, the
choice of transfer syntax, transcoding, verification of every data set before its first byte leaves, order,
memory, slow clients.

A method that must wait is a coroutine on Twisted's reactor and must not block it: what blocks (a database
driver, a file) goes through `Surroundings.in_thread`. Each is cancelled (`CancelledError`) when it takes
too long or when nobody wants its answer any more; `read` and `instances` are then closed (`aclose`), so
that a `finally` in them runs.

What they raise is turned into the coded errors of the specification:

    StoreUnavailable   E1004 (502) for images, E003 for a report: tried again until it answers
    StoreTimeout       E1005 (504), E003
    InstanceGone       this instance is not delivered; with what the KOS lists missing, E1004, and a
                       comparison of KOS and archive
    anything else      noted in the log by its type and place, then as StoreUnavailable

No socket, clock or reactor here.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Protocol, TypeVar

import attrs

from drimbox.config import Native
from drimbox.model import Study

T = TypeVar("T")


class StoreUnavailable(Exception):
    """The archive does not answer, refuses, or talks nonsense.

    The text is French, for operators, and holds nothing of a patient.
    """


class StoreTimeout(StoreUnavailable):
    """The archive took too long."""


class InstanceGone(Exception):
    """The instance is not in the archive any more."""


@attrs.frozen
class StoredInstance:
    """One instance of a series, as the archive lists it."""

    sop_instance_uid: str
    #: Empty when the archive would have to open the file to know it: only with `part10`.
    sop_class_uid: str = ""
    transfer_syntax_uid: str = ""
    #: True when `read` gives a DICOM file (PS3.10), False when it gives the bare data set.
    part10: bool = True
    #: Whatever lets the archive find it again in `read`.
    key: object = None


@attrs.frozen
class Changes:
    """What happened in the archive since a cursor (DB.SO.27)."""

    #: StudyInstanceUIDs to which something was added or removed, those that are gone included.
    studies: Collection[str]
    #: Where to go on from next time: any short text. It is kept durably.
    cursor: str
    #: False when more may have changed than `studies` tells: every study with a KOS is then looked at.
    complete: bool = True


class InThread(Protocol):
    """Runs blocking work off the reactor thread."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Return what gives the result."""


@attrs.frozen
class Surroundings:
    """What the factory of a store gets."""

    #: Name of the `[[site]]`, and its `[site.native]` section.
    site: str
    settings: Native
    #: Twisted's reactor.
    reactor: object
    in_thread: InThread


class ImageStore(abc.ABC):
    """An archive of images that can be read. Only the first three methods must be written."""

    @abc.abstractmethod
    async def find_study(self, study_uid: str) -> Study | None:
        """List the study: its series, their instances with their SOP classes; None when it is not held.

        Every field of `drimbox.model.Study` that the archive knows goes into the KOS (DB.SO.14, 18).
        """

    @abc.abstractmethod
    def instances(
        self, study_uid: str, series_uid: str, instance_uid: str | None = None
    ) -> AsyncIterator[StoredInstance]:
        """Yield the instances of a series, or only one of them, in the order in which to deliver them.

        Nothing is yielded when the archive holds none. Instances yielded early are read while the later
        ones are still being looked for.
        """

    @abc.abstractmethod
    def read(self, instance: StoredInstance) -> AsyncIterator[bytes]:
        """Yield the bytes of an instance, in blocks of any size.

        Several instances are read at once (`parallel`). When the client is slow the next block is simply
        not asked for, for at most `patience` seconds.
        """

    async def changes(self, cursor: str | None) -> Changes:
        """Say which studies changed since `cursor`, None at the very first time (DB.SO.27).

        Written only by archives that know: without it every study with a KOS is looked at (`mark`) each
        time.
        """
        return Changes((), cursor or "-", complete=False)

    async def mark(self, study_uid: str) -> str | None:
        """Return a short text that is another one when the study has changed; None when it is not held.

        To be written when there is something cheaper than listing the study.
        """
        study = await self.find_study(study_uid)
        if study is None:
            return None
        digest = hashlib.sha256("\n".join(sorted(study.instance_uids)).encode("ascii", "replace"))
        return digest.hexdigest()

    async def close(self) -> None:
        """Let go of everything: the gateway stops."""
        return


#: What `[site.native] factory` names.
Factory = Callable[[Surroundings], ImageStore]
