"""Tokenizer of HTTP header fields made of elements with parameters (RFC 9110 5.6), lenient like its peers.

`Accept` of a request and `Content-Type` of an answer or of a part have the same shape:

    element *( "," element )        element = [ head ] *( ";" [ name "=" value ] )

Splitting on commas and semicolons breaks on quoted values, so one pass walks over the text. It is more
tolerant than RFC 9110 in what real clients need (interfaces.md 6.2): blanks around `=`, empty elements
and empty parameters, values with `/` or `*` and no quotes, an element that has parameters and no head.
It is as strict as RFC 9110 in what protects us: visible ASCII only, closed quotes, counted elements.
"""

from __future__ import annotations

import re

import attrs

MAX_LENGTH = 16 * 1024
MAX_ELEMENTS = 64
MAX_PARAMETERS = 32

_BLANKS = re.compile(r"[ \t]*")
_NAME = re.compile(r"[!#-+\--:<>-~]+")  # visible ASCII but `"`, `,`, `;` and `=`
_VALUE = re.compile(r"[!#-+\--:<-~]*")  # the same with `=`: JavaMail writes boundary=----=_Part_0
_QUOTED = re.compile(r'"((?:[\t !#-\[\]-~]|\\[\t -~])*)"')
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class FieldError(ValueError):
    """The field is not of this shape, or larger than we read. The text repeats nothing of the field."""


@attrs.frozen
class Element:
    """One element: `head` in lower case (a media type, or empty) and its parameters in their order."""

    head: str
    #: (name in lower case, value as given, without quotes).
    parameters: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Return the value of the parameter `name` (lower case), or None.

        Raises `FieldError` when it is given twice with different values: then two readers could
        disagree on what it says.
        """
        found = {value for key, value in self.parameters if key == name}
        if len(found) > 1:
            raise FieldError(f"parameter {name} given twice")
        return found.pop() if found else None


def parse_elements(field: bytes) -> list[Element]:
    """Read a whole field value into its elements; empty elements are dropped.

    Raises `FieldError`. Time and memory are linear in the length, which is at most `MAX_LENGTH`.
    """
    if len(field) > MAX_LENGTH:
        raise FieldError(f"field of {len(field)} bytes, {MAX_LENGTH} allowed")
    try:
        text = field.decode("ascii")
    except UnicodeDecodeError:
        raise FieldError("byte outside ASCII") from None
    elements: list[Element] = []
    position = 0
    while position <= len(text):
        element, position = _element(text, position)
        if element.head or element.parameters:
            elements.append(element)
            if len(elements) > MAX_ELEMENTS:
                raise FieldError(f"more than {MAX_ELEMENTS} elements")
    return elements


def parse_media_type(field: bytes) -> Element:
    """Read a `Content-Type`: one element, with a head. Raises `FieldError`."""
    elements = parse_elements(field)
    if len(elements) != 1 or not elements[0].head:
        raise FieldError("not one media type")
    return elements[0]


def _skip(text: str, position: int) -> int:
    found = _BLANKS.match(text, position)
    return found.end() if found else position


def _element(text: str, position: int) -> tuple[Element, int]:
    """Read one element from `position`; return it and the position behind its comma."""
    head = ""
    parameters: list[tuple[str, str]] = []
    first = True
    while True:
        position = _skip(text, position)
        name = _NAME.match(text, position)
        if name is not None:
            position = _skip(text, name.end())
            if text[position : position + 1] == "=":
                value, position = _value(text, _skip(text, position + 1))
                parameters.append((name[0].lower(), value))
            elif first:
                head = name[0].lower()
            else:
                # A name alone (accept-ext of RFC 7231): kept, so that counting it is possible.
                parameters.append((name[0].lower(), ""))
            if len(parameters) > MAX_PARAMETERS:
                raise FieldError(f"more than {MAX_PARAMETERS} parameters")
            position = _skip(text, position)
        first = False
        following = text[position : position + 1]
        if following in ("", ","):
            return Element(head, tuple(parameters)), position + 1
        if following != ";":
            raise FieldError(f"unexpected character at offset {position}")
        position += 1


def _value(text: str, position: int) -> tuple[str, int]:
    if text[position : position + 1] != '"':
        bare = _VALUE.match(text, position)
        return (bare[0], bare.end()) if bare else ("", position)
    quoted = _QUOTED.match(text, position)
    if quoted is None:
        raise FieldError(f"quote not closed at offset {position}")
    return _ESCAPE.sub(r"\1", quoted[1]), quoted.end()
