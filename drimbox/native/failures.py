"""What the class of an archive raises, as the coded errors of the specification.

The class is somebody else's, so anything may come. An exception of no known kind is a fault of that class:
the log says where it happened and of which type it is, never its text, which may name a patient.
"""

from __future__ import annotations

import traceback

from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.logger import Logger

from drimbox.dicom.elements import DatasetRefused
from drimbox.errors import (
    DrimboxError,
    FeedError,
    ImageError,
    PacsCommunicationError,
    PacsUnavailable,
    RetrieveTimeout,
)
from drimbox.native.store import InstanceGone, StoreTimeout, StoreUnavailable

_log = Logger()
_TIMEOUTS = (StoreTimeout, TimeoutError, DeferredTimeout, ConnectTimeout)


def image_error(error: BaseException) -> DrimboxError:
    """Return the error of an image request (DB.SO.47)."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, _TIMEOUTS):
        return RetrieveTimeout(_words(error))
    return PacsUnavailable(_words(error))


def feed_error(error: BaseException) -> DrimboxError:
    """Return the error of the feed (DB.SO.45): tried again until the archive answers."""
    return error if isinstance(error, FeedError) else PacsCommunicationError(_words(error))


def _words(error: BaseException) -> str:
    """Say in French what happened."""
    if isinstance(error, StoreTimeout | StoreUnavailable | DrimboxError):
        return str(error)
    if isinstance(error, DatasetRefused):
        return "l'archive a rendu autre chose qu'un objet DICOM"
    if isinstance(error, InstanceGone):
        return "image absente de l'archive"
    if isinstance(error, _TIMEOUTS):
        return "l'archive n'a pas répondu à temps"
    if isinstance(error, CancelledError):
        return "lecture interrompue par l'archive"
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else "?"
    _log.error("the archive's class failed: {kind} at {place}", kind=type(error).__name__, place=place)
    return "erreur interne de l'archive"
