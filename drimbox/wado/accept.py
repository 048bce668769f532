"""Reading `Accept` as real clients write it: which transfer syntaxes they want, and how much.

The field is a list of ranges such as `multipart/related; type="application/dicom";
transfer-syntax=1.2.840.10008.1.2.4.80; q=0.8; boundary=**`. interfaces.md 6.2 lists the forms that
arrive: several header lines or one, commas too many, quotes or none, a range without its media type, a
boundary that is not one. The tokenizer (`fields`) takes the shape; this module gives it its meaning:

- a range counts when it is `multipart/related` of `application/dicom`, or has no media type at all;
- no `transfer-syntax`, or `*/*`: Explicit VR Little Endian (PS3.18 8.7.3.5.2); `*`: any, as stored;
- `q` missing is 1, 0 refuses the syntax, and anything that is not a number from 0 to 1 is a mistake;
- `boundary` is ignored whatever it says: we make our own (threats.md, multipart injection).

The outcome is an `Acceptable`, which `drimbox.dicom.syntaxes.choose` asks for ranks while a PACS
negotiates. Only the syntaxes that DRIMboxes may share count; a client that names nothing else gets 406.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from drimbox.dicom import syntaxes
from drimbox.errors import BadRequest, NotAcceptable
from drimbox.wado.fields import Element, FieldError, parse_elements

#: RFC 9110 12.4.2 allows three decimals; more are harmless.
_Q = re.compile(r"(?:[01](?:\.[0-9]{0,12})?|\.[0-9]{1,12})", re.ASCII)
#: Longest value of all lines together, bytes; a real one has ten ranges and about 1,300.
MAX_LENGTH = 16 * 1024


@attrs.frozen
class Acceptable:
    """What a client accepts. Only shared syntaxes (requirements.md 3.9) ever rank."""

    #: (transfer syntax, q), best first: highest q, then lossless, then the client's own order.
    ranked: tuple[tuple[str, float], ...]
    #: q of `transfer-syntax=*`, None when the client did not say so (or gave it q=0).
    any: float | None = None
    #: Syntaxes given q=0: excluded even from `any`.
    refused: frozenset[str] = frozenset()

    def q(self, transfer_syntax: str) -> float:
        """Return the client's q for a syntax, 0 when it does not accept it or it may not be shared."""
        if not syntaxes.is_shared(transfer_syntax) or transfer_syntax in self.refused:
            return 0.0
        for uid, q in self.ranked:
            if uid == transfer_syntax:
                return q
        return self.any or 0.0

    def rank(self, transfer_syntax: str) -> tuple[float, bool] | None:
        """Return a sort key, smallest best: by decreasing q, at equal q lossless first (DB.SO.85).

        None when the client does not accept this syntax.
        """
        q = self.q(transfer_syntax)
        return (-q, not syntaxes.is_lossless(transfer_syntax)) if q > 0 else None


def parse(lines: Iterable[bytes]) -> Acceptable:
    """Read every `Accept` line of a request, in order.

    Raises `BadRequest` (400) when there is none, when it is not well formed or too large, and when no
    range is for `application/dicom`; `NotAcceptable` (406), whose detail lists what could be offered,
    when every syntax is refused or none may be shared.
    """
    # Several lines are one, joined by commas (RFC 9110 5.3).
    joined = b",".join(lines)
    if len(joined) > MAX_LENGTH:
        raise BadRequest(f"en-tête Accept de {len(joined)} octets, {MAX_LENGTH} admis")
    try:
        ranges = parse_elements(joined)
        wanted = [found for element in ranges if (found := _syntax_and_q(element)) is not None]
    except FieldError as error:
        raise BadRequest("en-tête Accept illisible") from error
    if not ranges:
        raise BadRequest("en-tête Accept absent")
    if not wanted:
        raise BadRequest('en-tête Accept sans multipart/related; type="application/dicom"')
    return _acceptable(wanted)


def _syntax_and_q(element: Element) -> tuple[str, float] | None:
    """Return (transfer syntax or `*`, q) of a range, or None when it is for something else than us."""
    if element.head == "*/*":
        return syntaxes.EXPLICIT_LE, _q(element)
    if element.head == "multipart/related":
        if (element.get("type") or "").lower() != "application/dicom":
            return None
    elif element.head or not _is_bare(element):
        return None
    return element.get("transfer-syntax") or syntaxes.EXPLICIT_LE, _q(element)


def _is_bare(element: Element) -> bool:
    """Say whether a range without media type is one of ours: it names a syntax, or the DICOM type."""
    kind = element.get("type")
    if kind is None:
        return element.get("transfer-syntax") is not None
    return kind.lower() == "application/dicom"


def _q(element: Element) -> float:
    text = element.get("q")
    if text is None:
        return 1.0
    if _Q.fullmatch(text) is None or (q := float(text)) > 1:
        raise BadRequest("en-tête Accept : q n'est pas un nombre de 0 à 1")
    return q


def _acceptable(wanted: list[tuple[str, float]]) -> Acceptable:
    best: dict[str, float] = {}
    for uid, q in wanted:
        # The same syntax twice: the client takes it at its best word.
        best[uid] = max(q, best.get(uid, 0.0))
    any_q = best.pop("*", 0.0) or None
    refused = frozenset(uid for uid, q in best.items() if q == 0)
    kept = [(uid, q) for uid, q in best.items() if q > 0 and syntaxes.is_shared(uid)]
    # sorted() is stable: what q and losslessness do not tell apart stays in the client's order.
    ranked = tuple(sorted(kept, key=lambda entry: (-entry[1], not syntaxes.is_lossless(entry[0]))))
    acceptable = Acceptable(ranked, any_q, refused)
    if not any(acceptable.q(uid) > 0 for uid in syntaxes.SHARED):
        raise NotAcceptable(syntaxes.offered_text())
    return acceptable
