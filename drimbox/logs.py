"""Structured logs without patient data.

Theory of operation. Every part of the gateway logs through `twisted.logger.Logger` with a format and
named fields; this module is the observer at the end. For each event it

1. demotes what Twisted and its servers say about themselves to `debug`, and drops what is under the level;
2. makes every field harmless: numbers stay, model objects become their class name, bytes their length,
   other values text that `redaction` has gone over;
3. formats the message from those harmless fields only, so that no `{report}` can print a report;
4. adds the fields bound to the work in progress (`bind`), which follow it from one coroutine to the next;
5. writes one line: a JSON object, or text. Control characters are escaped in both, so that a peer's
   words can neither start a line of their own nor drive a terminal. A traceback is one field.

Patient data must not be given to the logger in the first place; steps 2 and 3 are the last defence.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import attrs
from twisted.logger import ILogObserver, Logger, LogLevel, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from drimbox.config import LogSettings
from drimbox.redaction import escape_control, redact

__all__ = ["JsonObserver", "TextObserver", "bind", "bridge_stdlib", "correlation_id", "make_observer"]

MAX_TEXT = 4000
MAX_TRACEBACK = 20000
MAX_ITEMS = 50

_bound: ContextVar[Mapping[str, object]] = ContextVar("drimbox_log_fields", default=MappingProxyType({}))

#: Keys of an event that are not fields somebody named.
_RESERVED = frozenset(
    {"time", "level", "namespace", "message", "traceback", "format", "isError", "system", "failure"}
)
#: Libraries whose warnings may quote the data they were given.
_TALKATIVE = ("pydicom", "pynetdicom", "highdicom", "hl7", "sqlalchemy")


@contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Add `fields` to everything logged inside, in this coroutine and those it starts."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def bound() -> Mapping[str, object]:
    """Return the fields bound where the caller runs."""
    return _bound.get()


def correlation_id() -> str:
    """Make an identifier that ties the lines of one piece of work together."""
    return secrets.token_hex(6)


def make_observer(settings: LogSettings) -> LineObserver:
    """Return the observer `[log]` asks for. Raises `OSError` when its file cannot be opened."""
    write = _standard_output if settings.file is None else LogFile(settings.file).write
    kind = TextObserver if settings.format == "text" else JsonObserver
    return kind(write, LogLevel.levelWithName(settings.level))


# --- one event --------------------------------------------------------------------------------------


def harmless(value: object, depth: int = 0) -> Any:
    """Return what may be written of `value`: a JSON scalar, a list or a table of such."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    if value is None or isinstance(value, bool | int | float):
        # A 15-digit number is an INS whatever its type.
        text = str(value)
        return value if redact(text) == text else redact(text)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} octets>"
    if isinstance(value, str):
        return _short(redact(value))
    if isinstance(value, Mapping) and depth < 3:
        items = list(value.items())[:MAX_ITEMS]
        return {_short(redact(str(key))): harmless(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth < 3:
        return [harmless(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
    if isinstance(value, BaseException | Path):
        return _short(redact(str(value)))
    if attrs.has(type(value)) or isinstance(value, Mapping | list | tuple | set | frozenset):
        # Model objects print their content: name them only.
        return f"<{type(value).__name__}>"
    try:
        return _short(redact(str(value)))
    except Exception:
        return f"<{type(value).__name__}>"


def _short(text: str, most: int = MAX_TEXT) -> str:
    return text if len(text) <= most else text[:most] + "…"


def _level(event: Mapping[str, Any]) -> Any:
    """Return the event's level; Twisted's own information is of use to a developer only."""
    level = event.get("log_level") or LogLevel.info
    namespace = str(event.get("log_namespace", ""))
    if level == LogLevel.info and (namespace.startswith("twisted") or namespace in ("log_legacy", "-")):
        return LogLevel.debug
    return level


def _fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the named fields of an event, made harmless; the event's own win over the bound ones."""
    fields = {
        key: value
        for key, value in {**_bound.get(), **event}.items()
        if not key.startswith("log_") and key not in _RESERVED
    }
    if "isError" in event:  # of the older twisted.python.log, which says why by saying None
        fields.pop("why", None)
    if "warning" in fields and any(name in str(fields.get("filename", "")) for name in _TALKATIVE):
        fields["warning"] = "(texte tu)"
    return {key: harmless(value) for key, value in fields.items()}


def _message(event: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """Format the message from harmless fields, so that a format cannot reach what they hide."""
    plain = {key: event[key] for key in ("log_format", "log_namespace", "log_level") if key in event}
    hidden = {key: harmless(event[key]) for key in ("log_source", "log_failure") if key in event}
    if isinstance(event.get("log_text"), str):  # an event of the older twisted.python.log
        return _short(redact(event["log_text"]))
    try:
        return _short(redact(formatEvent({**plain, **hidden, **fields})))
    except Exception:
        return "(message illisible)"


def _traceback(event: Mapping[str, Any]) -> str | None:
    failure = event.get("log_failure")
    if not isinstance(failure, Failure):
        return None
    try:
        # "default", never "verbose": the verbose form prints local variables.
        return _short(redact(failure.getTraceback(detail="default")), MAX_TRACEBACK)
    except Exception:
        return f"<{failure.type.__name__ if failure.type else 'Failure'}>"


def _instant(event: Mapping[str, Any]) -> str:
    moment = datetime.fromtimestamp(event.get("log_time") or 0.0, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@implementer(ILogObserver)
class LineObserver:
    """Writes one line per event; a subclass says how the line looks. Never raises."""

    def __init__(self, write: Callable[[str], None], level: Any = LogLevel.info) -> None:
        self._write = write
        self._least = level

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Write the event, unless it is under the level."""
        level = _level(event)
        if level < self._least:
            return
        try:
            fields = _fields(event)
            namespace = str(event.get("log_namespace", ""))
            line = self.line(
                _instant(event), level.name, namespace, _message(event, fields), fields, _traceback(event)
            )
            self._write(line + "\n")
        except Exception as error:
            # A log that fails must not take the work down with it, nor stay silent.
            sys.__stderr__.write(f"journal : {type(error).__name__}\n") if sys.__stderr__ else None

    def line(
        self,
        time: str,
        level: str,
        namespace: str,
        message: str,
        fields: Mapping[str, Any],
        traceback: str | None,
    ) -> str:
        """Return the line without its end."""
        raise NotImplementedError


class JsonObserver(LineObserver):
    """One JSON object a line: time, level, namespace, message, then the named fields, then traceback."""

    def line(
        self,
        time: str,
        level: str,
        namespace: str,
        message: str,
        fields: Mapping[str, Any],
        traceback: str | None,
    ) -> str:
        """Return the object; JSON itself escapes C0 controls, `escape_control` the others."""
        content = {"time": time, "level": level, "namespace": namespace, "message": message, **fields}
        if traceback is not None:
            content["traceback"] = traceback
        return escape_control(json.dumps(content, ensure_ascii=False))


class TextObserver(LineObserver):
    """`time level namespace: message key=value`, for people who read as it comes."""

    def line(
        self,
        time: str,
        level: str,
        namespace: str,
        message: str,
        fields: Mapping[str, Any],
        traceback: str | None,
    ) -> str:
        """Return the line; values that are not one plain word are quoted as in JSON."""
        words = [f"{time} {level:<8} {namespace}: {message}"]
        words += [f"{key}={_word(value)}" for key, value in fields.items()]
        if traceback is not None:
            words.append(f"traceback={json.dumps(traceback, ensure_ascii=False)}")
        return escape_control(" ".join(words))


def _word(value: Any) -> str:
    if isinstance(value, str) and value and not any(sign in value for sign in " \"'=\n"):
        return value
    return json.dumps(value, ensure_ascii=False)


# --- where lines go ---------------------------------------------------------------------------------


def _standard_output(line: str) -> None:
    stream: TextIO | None = sys.__stdout__
    if stream is None:
        return
    stream.buffer.write(line.encode("utf-8", "backslashreplace"))
    stream.buffer.flush()


class LogFile:
    """An append-only file that finds its name again after logrotate has moved it away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def write(self, line: str) -> None:
        """Append one line in one system call, so that lines of several processes do not mix."""
        self._follow()
        os.write(self._descriptor, line.encode("utf-8", "backslashreplace"))

    def _follow(self) -> None:
        try:
            there = os.stat(self._path)
            here = os.fstat(self._descriptor)
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                return
        except FileNotFoundError:
            pass
        fresh = self._open()
        os.close(self._descriptor)
        self._descriptor = fresh


# --- the standard library's loggers -----------------------------------------------------------------


class _Bridge(logging.Handler):
    """Passes warnings of libraries that use `logging` to ours, without the text of talkative ones."""

    _log = Logger(namespace="stdlib")

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record; a library's traceback stays out, its exception's class is enough."""
        level = LogLevel.warn if record.levelno < logging.ERROR else LogLevel.error
        talkative = record.name.partition(".")[0] in _TALKATIVE
        text = "(texte tu)" if talkative else record.getMessage()
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        where = f"{record.module}:{record.lineno}"
        self._log.emit(level, "{logger}: {text}", logger=record.name, text=text, where=where, error=error)


def bridge_stdlib() -> None:
    """Send the warnings and errors of `logging` users here, once; their lower levels are dropped."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Bridge) for handler in root.handlers):
        root.addHandler(_Bridge(logging.WARNING))
