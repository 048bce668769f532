"""How the simulated PACS behaves, and misbehaves on demand.

Every field left alone means a correct PACS. A `Behaviour` is frozen: a test replaces it as a whole
(`pacs.behaviour = Behaviour(move_final="never")`, or `attrs.evolve` of the present one), and the change
holds for what begins afterwards: the next connection, the next query, the next move.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
import cattrs

#: What is sent where a PDU should be: a length that promises 4 GB behind a type nobody knows.
GARBAGE = b"\x99\x00\xff\xff\xff\xffHTTP/1.1 400 Bad Request\r\n\r\n"


@attrs.frozen(kw_only=True)
class Behaviour:
    """What the PACS does; the defaults are those of a correct one. Indices count from 0, in move order."""

    # -- connection and association
    #: Listens to nobody: connections are refused, those that exist are cut.
    down: bool = False
    #: "silent" takes the connection and never says a word, "close" drops it, "garbage" answers no PDU.
    connection: Literal["answer", "silent", "close", "garbage"] = "answer"
    #: A-ASSOCIATE-RJ for everybody: result, source, reason (PS3.8 9.3.4), such as (2, 3, 2).
    reject: tuple[int, int, int] | None = None
    #: More associations than this at once are rejected (local limit exceeded).
    maximum_associations: int = 64
    echo_status: int = 0x0000

    # -- C-FIND
    #: Seconds before the first answer.
    find_delay: float = 0.0
    #: Instead of answering.
    find: Literal["answer", "silent", "abort", "close", "garbage"] = "answer"
    #: Fail at once with this status.
    find_status: int | None = None
    #: Abort the association after so many pending answers.
    find_stop_after: int | None = None
    #: Grant relational queries when they are asked for.
    relational: bool = True
    #: Attributes never returned, by keyword, such as SOPClassUID.
    find_omit: tuple[str, ...] = ()
    #: Every answer twice.
    find_repeat: bool = False
    #: One more answer, about another study.
    find_foreign: bool = False

    # -- C-MOVE: the request and its answers
    #: Seconds before the first sub-operation.
    move_delay: float = 0.0
    #: Instead of answering, before any sub-operation.
    move: Literal["answer", "silent", "abort", "close", "garbage"] = "answer"
    #: Send the whole series when one instance of it is asked for.
    ignore_level: bool = False
    #: Fail at once with this status, such as 0xA801.
    move_status: int | None = None
    #: Send pending answers.
    pending: bool = True
    #: Instances reported as failed and not sent.
    fail: tuple[int, ...] = ()
    #: Instances never sent although reported as completed.
    skip: tuple[int, ...] = ()
    #: The instances in an order of chance, by this seed; 0 leaves them as held.
    shuffle: int = 0
    #: The last so many instances are reported as completed, and sent only after the final answer: so
    #: many seconds later, on an association of their own.
    late: int = 0
    late_after: float = 0.0
    #: Numbers of the final answer that are lies.
    claim_completed: int | None = None
    claim_failed: int | None = None
    #: "early" sends the final answer before the last instance, "never" not at all.
    final: Literal["last", "early", "never", "garbage"] = "last"
    #: Status of the final answer, whatever happened.
    final_status: int | None = None
    #: Goes on after a C-CANCEL.
    ignore_cancel: bool = False
    #: Goes on sending after the association of the C-MOVE ended.
    survive_abort: bool = False
    #: "abandon" ends the move at the first refused instance, as stock Orthanc does.
    on_refusal: Literal["continue", "abandon"] = "continue"

    # -- C-STORE sub-operations
    #: Calling AE title of the store associations; its own when None.
    store_calling: str | None = None
    #: "other" names the C-MOVE that came before this one.
    originator: Literal["right", "absent", "wrong", "other"] = "right"
    #: Transfer syntaxes offered: the stored one, the uncompressed ones, both in one presentation
    #: context, or both in one context each.
    propose: Literal["stored", "uncompressed", "both", "each"] = "both"
    associations: int = 1
    #: The store associations work at the same time instead of one after the other.
    parallel: bool = False
    #: Seconds between two instances.
    pause: float = 0.0
    #: Seconds it waits for a C-STORE response; then it aborts and the instance has failed.
    patience: float = 30.0
    #: Instances sent twice.
    repeat: tuple[int, ...] = ()
    #: Seconds of silence in the middle of each data set.
    drip: float = 0.0
    #: One store association for each instance.
    reopen: bool = False
    #: Instances of which a copy goes to another AE title, at the address of the destination.
    astray: tuple[int, ...] = ()
    astray_to: str = "NOBODY"
    #: Instances inside whose data set the connection is cut; the others follow on a new one, and these
    #: again when `resend`.
    tear: tuple[int, ...] = ()
    resend: bool = False
    #: One more instance, before number `intruder_at`, of another study, series or patient; "disguise" is
    #: another study's under the UID of the instance that is due.
    intruder: Literal["", "study", "series", "patient", "disguise"] = ""
    intruder_at: int = 0
    #: After so many instances, `stop` the store association ("inside" is in the middle of a data set).
    stop_after: int | None = None
    stop: Literal["close", "abort", "release", "silent", "inside"] = "close"
    #: Drop the association of the C-MOVE at that moment too, instead of reporting the failure.
    stop_move: bool = False

    # -- C-STORE to this PACS
    #: Transfer syntaxes it accepts; all when empty.
    accepts: tuple[str, ...] = ()
    store_status: int = 0x0000


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)


def behaviour_from_json(value: dict[str, Any]) -> Behaviour:
    """Read a behaviour from JSON keys named as the fields; raises ValueError on an unknown key or value."""
    try:
        return _CONVERTER.structure(value, Behaviour)
    except Exception as error:
        reasons = "; ".join(cattrs.transform_error(error))
        raise ValueError(f"not a behaviour: {reasons}") from error
