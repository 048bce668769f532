"""The audit trail held against what was done: a record for each thing asked, and no other."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tests.integration.mixed.stand import MixedStand

#: Why a report that was taken may give no manifest: two patients, no image, a value missing.
_NO_MANIFEST = ("E001", "E004", "E005")
#: What the gateway writes when it has found by itself that certificates on disk are others.
_SEEN = "Rechargement des certificats TLS"
#: Both transactions by which a report comes.
_REPORTS = ("RAD-128", "CARD-7")


def _name(event: dict[str, Any]) -> str:
    """Return what a record counts as: its type, with the code of what went wrong between DMP and us."""
    kind = event["event_type"][0]
    if kind in _REPORTS:
        return "report"
    if kind == "110132" and ["Alert Description", _SEEN] in event["objects"][0]["details"]:
        return "files seen"
    code = event.get("outcome_description", "").partition(" ")[0]
    if kind == "ITI-41" and code in _NO_MANIFEST:
        return "no manifest"
    if kind in ("ITI-41", "ITI-57") and event["outcome"] == 4 and len(event["participants"]) == 1:
        return "not sent"
    if kind in ("ITI-41", "ITI-57") and event["outcome"] != 0:
        return f"{kind} {code}"
    return str(kind)


def written(stand: MixedStand) -> Counter[str]:
    """Count the records of the trail."""
    return Counter(_name(json.loads(row[0])["event"]) for row in stand.query("SELECT payload FROM audit"))


def due(stand: MixedStand, asked: Counter[str], moments: Counter[str]) -> Counter[str]:
    """Count the records there must be.

    `asked` is what the works asked of the gateway; `moments` are the requests that the DMP treated badly,
    by transaction: each is recorded as unanswered (SC.DMP/CONF.14), as is what came of it in the end.
    """
    documents = [
        entry
        for entry in stand.dmp.service.registry.entries.values()
        if entry.mime_type == "application/dicom"
    ]
    ((removals,),) = stand.query("SELECT count(*) FROM outbox WHERE kind = 'remove' AND state = 'done'")
    found = asked + Counter(
        {
            "110120": 1,
            "ITI-41": len(documents),
            "ITI-41 E007": moments["TD2.1"],
            "ITI-57": removals,
            "ITI-57 E007": moments["TD3.3c"],
        }
    )
    return +found


def check(stand: MixedStand, asked: Counter[str], moments: Counter[str], renewed: int) -> None:
    """Check that each thing done has its record, and each record its reason.

    `renewed` is how often a certificate was renewed on disk.
    """
    found, wanted = written(stand), due(stand, asked, moments)
    # How many of these there are the model does not say; they say why themselves.
    found.pop("no manifest", None)
    found.pop("not sent", None)
    # It looks every half a minute. Between two files of a pair it may see them not fit, and says so.
    assert found.pop("files seen", 0) <= 2 * renewed
    questions = {name: found.pop(name) for name in ("TD0.2", "ITI-18")}
    assert found == wanted, {
        name: (found[name], wanted[name]) for name in found | wanted if found[name] != wanted[name]
    }
    # One that was cut before it could be read has left, and has not arrived.
    for transaction, name in (("TD0.2", "TD0.2"), ("TD3.1", "ITI-18")):
        arrived = stand.arrived[transaction]
        assert arrived <= questions[name] <= arrived + moments[transaction], (name, arrived, moments)
    # What the registry took is what was sent, less what it never answered for.
    assert stand.arrived["TD2.1"] >= wanted["ITI-41"]
