"""Reading one HTTP/1.1 response as its bytes come, and knowing for certain where it ends (RFC 9112).

    LINES(head) --> CHUNK SIZE <--> CHUNK DATA --> TRAILER --> DONE
               |--> LENGTH -----------------------------------> DONE
               |--> UNTIL CLOSE --(the connection ends)-------> DONE
               |--> DONE (204, 304, or an announced length of zero)

A client of bulk images lives on one question: did everything come? So every end but the announced one is
a fault, and nothing is guessed. Faults have a gravity. Production is strict: `AnswerRefused` at the first
one that is not merely odd, since a lenient client is what response splitting is made for. A validator is
not strict: it gets the faults as events, reads on as long as reading on means anything, and so lists all.
Body bytes are passed on as they came; only lines are held back, and their number and length are bounded.
"""

from __future__ import annotations

import enum
import re

import attrs

#: Bytes of status line and headers; a gateway's has some 400.
MAX_HEAD = 64 * 1024
MAX_HEADERS = 128
#: A chunk-size line with its extensions, and one trailer.
MAX_LINE = 4 * 1024
#: Interim (1xx) responses before the real one.
MAX_INTERIM = 8

_STATUS = re.compile(rb"HTTP/([0-9])(?:\.([0-9]))? ([1-9][0-9][0-9])(?: ([^\r\n]*))?")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]*)?")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_BODYLESS = frozenset({204, 304})


class Gravity(enum.Enum):
    """What a fault does to the reading."""

    #: Allowed, or harmless.
    ODD = "odd"
    #: Against the rule, but there is only one way to read it.
    WRONG = "wrong"
    #: Nothing behind it can be read.
    FATAL = "fatal"


@attrs.frozen
class Fault:
    """Something that is not as it must be: French text without any value of the peer's, and clause."""

    text: str
    clause: str
    gravity: Gravity = Gravity.FATAL


@attrs.frozen
class Head:
    """Status line and headers; names in lower case, in their order."""

    version: str
    status: int
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Return the first header called `name` (lower case), or None."""
        return next((value for key, value in self.headers if key == name), None)

    def all(self, name: str) -> list[str]:
        """Return every header called `name` (lower case)."""
        return [value for key, value in self.headers if key == name]


@attrs.frozen
class Body:
    """Some bytes of the body, never empty. How they are cut means nothing."""

    data: bytes


@attrs.frozen
class End:
    """The response is whole, by its own framing; `by_close` when only the connection's end says so."""

    by_close: bool = False


Event = Head | Body | End | Fault


class AnswerRefused(Exception):
    """The bytes are no HTTP/1.1 response, or not all of one; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.text} ({fault.clause})")
        self.fault = fault


class _State(enum.Enum):
    START = "ligne de statut"
    HEADERS = "en-têtes"
    LENGTH = "corps"
    CHUNK_SIZE = "taille d'un morceau"
    CHUNK_DATA = "morceau"
    CHUNK_END = "fin d'un morceau"
    TRAILER = "en-têtes de fin"
    UNTIL_CLOSE = "corps sans longueur"
    DONE = "fin"
    FAILED = "échec"


_IN_BODY = (_State.LENGTH, _State.CHUNK_DATA, _State.UNTIL_CLOSE)
_IDLE = (_State.DONE, _State.FAILED)


class AnswerReader:
    """Incremental reader of one response: `feed` bytes as they come, then `finish`."""

    def __init__(self, *, strict: bool = True) -> None:
        """`strict` raises `AnswerRefused` at the first fault that is not odd; else all come as events.

        Not strict also reads captures: bare LF line ends, an HTTP/2 status line as tools print it, a
        body whose chunks were already taken apart.
        """
        self._strict = strict
        self._state = _State.START
        self._held = b""
        self._left = 0
        self._head_size = 0
        self._interim = 0
        self._status = (0, "")
        self._headers: list[tuple[str, str]] = []
        self._bare = False
        self._first_chunk = True
        self._events: list[Event] = []

    @property
    def done(self) -> bool:
        """True once the response has ended as it announced."""
        return self._state is _State.DONE

    def feed(self, data: bytes) -> list[Event]:
        """Take some bytes, return what they complete. Raises `AnswerRefused`; then stop using it."""
        self._events = []
        if self._held:
            data, self._held = self._held + data, b""
        position = 0
        while position < len(data) and self._state is not _State.FAILED:
            if self._state is _State.DONE:
                self._fault("octets après la fin de la réponse", "RFC 9112 6.3", Gravity.WRONG)
                self._state = _State.FAILED if self._strict else self._state
                break
            step = self._body(data, position) if self._state in _IN_BODY else self._line_at(data, position)
            if step < 0:
                break
            position = step
        return self._events

    def finish(self) -> list[Event]:
        """Say that no byte will come; return the last events. Raises `AnswerRefused` when bytes lack."""
        self._events = []
        if self._state is _State.CHUNK_SIZE and self._first_chunk and self._held and not self._strict:
            self._chunk_size(self._held)
            self._events.append(Body(self._held))
        if self._state is _State.UNTIL_CLOSE:
            self._end(by_close=True)
        elif self._state not in _IDLE:
            text = f"réponse tronquée ({self._state.value})"
            if self._state is _State.START and not self._held:
                text = "aucune réponse"
            self._fault(text, "RFC 9112 8")
        return self._events

    # --- body ---

    def _body(self, data: bytes, position: int) -> int:
        take = len(data) - position
        if self._state is not _State.UNTIL_CLOSE:
            take = min(take, self._left)
            self._left -= take
        whole = position == 0 and take == len(data)
        self._events.append(Body(data if whole else data[position : position + take]))
        if self._left == 0 and self._state is _State.LENGTH:
            self._end()
        elif self._left == 0 and self._state is _State.CHUNK_DATA:
            self._state = _State.CHUNK_END
        return position + take

    def _end(self, *, by_close: bool = False) -> None:
        self._state = _State.DONE
        self._events.append(End(by_close))

    # --- lines ---

    def _line_at(self, data: bytes, position: int) -> int:
        """Read one line; return where the next one begins, -1 when it is not whole."""
        in_head = self._state in (_State.START, _State.HEADERS)
        limit = MAX_HEAD if in_head else MAX_LINE
        end = data.find(b"\n", position)
        if end < 0:
            self._held = data[position:]
            if len(self._held) + self._head_size > limit:
                self._too_long(in_head)
            return -1
        self._head_size += end + 1 - position
        if self._head_size > limit:
            self._too_long(in_head)
            return -1
        line = data[position:end]
        if line.endswith(b"\r"):
            line = line[:-1]
        elif not self._bare:
            # Once is enough to say.
            self._bare = True
            self._fault("fin de ligne LF sans CR", "RFC 9112 2.2", Gravity.WRONG)
        before = self._state
        self._line(line)
        if self._state is not before or not in_head:
            self._head_size = 0
        if self._state is _State.UNTIL_CLOSE and before is _State.CHUNK_SIZE:
            return position  # no chunk at all: the line was data
        return end + 1

    def _too_long(self, in_head: bool) -> None:
        if in_head:
            self._fault(f"en-têtes de plus de {MAX_HEAD // 1024} Kio", "RFC 9112 5")
        else:
            self._fault(f"ligne de plus de {MAX_LINE // 1024} Kio dans les morceaux", "RFC 9112 7.1")

    def _line(self, line: bytes) -> None:
        match self._state:
            case _State.START:
                self._status_line(line)
            case _State.HEADERS:
                if line:
                    self._header(line)
                else:
                    self._head_ends()
            case _State.CHUNK_SIZE:
                self._chunk_size(line)
            case _State.CHUNK_END:
                if line:
                    self._fault("morceau plus long qu'annoncé", "RFC 9112 7.1")
                else:
                    self._state = _State.CHUNK_SIZE
            case _ if not line:
                self._end()
            case _:
                self._trailer(line)

    def _status_line(self, line: bytes) -> None:
        found = _STATUS.fullmatch(line)
        if found is None:
            self._fault("ligne de statut illisible", "RFC 9112 4")
            return
        version = found[1].decode() + ("." + found[2].decode() if found[2] else "")
        if version != "1.1":
            self._fault(f"HTTP/{version} : HTTP/1.1 attendu", "RFC 9112 2.3", Gravity.WRONG)
        self._status = (int(found[3]), version)
        self._headers = []
        self._state = _State.HEADERS

    def _header(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if line[:1] in (b" ", b"\t"):
            self._fault("en-tête replié sur plusieurs lignes", "RFC 9112 5.2", Gravity.WRONG)
            return
        if not colon or _NAME.fullmatch(name) is None:
            self._fault("ligne d'en-tête sans nom légal", "RFC 9112 5", Gravity.WRONG)
            return
        value = value.strip(b" \t")
        if any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in value):
            self._fault("caractère de commande dans un en-tête", "RFC 9110 5.5", Gravity.WRONG)
            return
        if len(self._headers) >= MAX_HEADERS:
            self._fault(f"plus de {MAX_HEADERS} en-têtes", "RFC 9112 5")
            return
        self._headers.append((name.decode("ascii").lower(), value.decode("latin-1")))

    def _head_ends(self) -> None:
        status, version = self._status
        if status < 200 and status != 101:
            self._interim += 1
            self._state = _State.START
            if self._interim > MAX_INTERIM:
                self._fault("trop de réponses intermédiaires", "RFC 9110 15.2")
            return
        head = Head(version, status, tuple(self._headers))
        self._frame(head)
        if self._state is not _State.FAILED:
            # The head comes before what its framing already says: an end, at once.
            at = next((i for i, event in enumerate(self._events) if isinstance(event, End)), None)
            self._events.insert(len(self._events) if at is None else at, head)

    def _frame(self, head: Head) -> None:
        """Choose how the body ends (RFC 9112 6.3)."""
        codings = [
            word.strip().lower() for value in head.all("transfer-encoding") for word in value.split(",")
        ]
        lengths = {value.strip() for value in head.all("content-length")}
        if len(lengths) > 1 or any(_LENGTH.fullmatch(value.encode("latin-1")) is None for value in lengths):
            self._fault("Content-Length illisible ou multiple", "RFC 9112 6.3")
            return
        if codings and lengths:
            self._fault("Transfer-Encoding et Content-Length ensemble", "RFC 9112 6.2", Gravity.WRONG)
        if head.status in _BODYLESS:
            self._end()
        elif codings:
            if codings != ["chunked"]:
                self._fault("Transfer-Encoding autre que « chunked »", "RFC 9112 6.1")
                return
            self._state = _State.CHUNK_SIZE
        elif lengths:
            self._left = int(lengths.pop())
            self._state = _State.LENGTH
            if self._left == 0:
                self._end()
        else:
            self._state = _State.UNTIL_CLOSE

    def _chunk_size(self, line: bytes) -> None:
        found = _CHUNK.fullmatch(line)
        first, self._first_chunk = self._first_chunk, False
        if found is None:
            if first and not self._strict:
                self._fault(
                    "morceaux (chunked) absents : défaits par l'outil de capture, ou jamais écrits",
                    "RFC 9112 7.1",
                    Gravity.ODD,
                )
                self._state = _State.UNTIL_CLOSE
            else:
                self._fault("taille de morceau illisible", "RFC 9112 7.1")
            return
        self._left = int(found[1], 16)
        self._state = _State.CHUNK_DATA if self._left else _State.TRAILER

    def _trailer(self, line: bytes) -> None:
        name, colon, _ = line.partition(b":")
        if not colon or _NAME.fullmatch(name) is None:
            self._fault("en-tête de fin illisible", "RFC 9112 7.1.2")
        elif len(self._headers) >= MAX_HEADERS:
            self._fault(f"plus de {MAX_HEADERS} en-têtes", "RFC 9112 5")
        else:
            # Counted with the others; what it says is of no use to us.
            self._headers.append((name.decode("ascii").lower(), ""))

    def _fault(self, text: str, clause: str, gravity: Gravity = Gravity.FATAL) -> None:
        fault = Fault(text, clause, gravity)
        if gravity is Gravity.FATAL or (self._strict and gravity is Gravity.WRONG):
            self._state = _State.FAILED
        if self._strict and gravity is not Gravity.ODD:
            raise AnswerRefused(fault)
        self._events.append(fault)
