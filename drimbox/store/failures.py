"""Work that broke in a way nobody foresaw: what may be written down of it, and who is to blame.

The text of an exception may quote a patient's data, so a queue keeps its type and the place in our code
where it happened. A store that is full, busy or away breaks the work on every row alike: that is no
fault of the row's, and brings none of them nearer to being parked.
"""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

import drimbox
from drimbox.store.errors import StoreBusy, StoreClosed

_ROOT = Path(drimbox.__file__).parent
#: What the machine lacks, not the row: space, quota, descriptors, a disk that answers, memory.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS, errno.ENOMEM)


def describe(error: BaseException) -> str:
    """Return the type of an exception and the innermost line of ours it went through, without its text."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_ROOT):
            place = f" ({path.relative_to(_ROOT.parent)}:{frame.lineno})"
    return type(error).__name__ + place


def blames_row(error: BaseException) -> bool:
    """Say whether the row that was worked on may be what broke the work."""
    if isinstance(error, OperationalError) and "decode to UTF-8" in str(error.orig):
        # What SQLite's driver says of a damaged text.
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        # The server went away under it.
        return False
    if isinstance(error, StoreBusy | StoreClosed | OperationalError | PoolTimeout | MemoryError):
        return False
    return not (isinstance(error, OSError) and error.errno in _MACHINE)
