"""The messages about the audit trail itself: it is searched, its old events go (DB.CS.10, DB.CS.96)."""

from __future__ import annotations

import attrs

from drimbox.audit.messages import APPLICATION, URI, Alert, administration, participant, security_alert
from drimbox.ports import AuditEvent, AuditObject

#: ParticipantObjectIDTypeCode, ours: number and hash of the last event that a purge removes.
PURGE = "AUDIT-PURGE"


def trail_read(
    *,
    user: str,
    machine: str,
    program: str,
    trail: str,
    criteria: tuple[tuple[str, str], ...],
    patient_ins: str = "",
    study_uid: str = "",
) -> AuditEvent:
    """Somebody searches the audit trail: Audit Log Used (PS3.15 A.5.3.2).

    `user` is the account that runs `program` on `machine`, `trail` the URI of the trail, `criteria` the
    pairs of what is looked for; a search for a patient or a study is found by them too.
    """
    return AuditEvent(
        event_id="110101",
        action="R",
        event_type=("AUDIT-SEARCH", "DRIMbox", "Recherche dans l'audit"),
        participants=(
            attrs.evolve(participant("", user, machine), requestor=True),
            participant(APPLICATION, program, machine),
        ),
        objects=(AuditObject(trail, "2", "13", URI, details=criteria, name="Security Audit Log"),),
        patient_ins=patient_ins,
        study_uid=study_uid,
    )


def trail_purged(*, name: str, source_name: str, last_id: int, link: str, count: int) -> AuditEvent:
    """The trail loses its `count` oldest events, past retention, up to number `last_id` with hash `link`.

    Written before the first of them goes; the chain is verified against it.
    """
    event = administration(
        name=name,
        source_name=source_name,
        user=name,
        action=f"Effacement des événements d'audit au-delà du délai de conservation ({count})",
        subject="audit",
    )
    purge = AuditObject(f"{last_id}:{link}", "2", "13", PURGE, "15")
    return attrs.evolve(event, objects=(*event.objects, purge))


def unreadable(*, name: str, source_name: str, number: int) -> AuditEvent:
    """Return what is sent on in the place of an event that cannot be read back: that it is so."""
    return security_alert(
        kind=Alert.SECURITY_CONFIGURATION,
        name=name,
        source_name=source_name,
        subject=f"audit {number}",
        description=f"Événement d'audit {number} illisible dans le journal d'origine",
    )


def read_purge(identifier: str) -> tuple[int, str] | None:
    """Return number and hash of the last event a purge announced, None when it cannot be read."""
    number, _, link = identifier.partition(":")
    return (int(number), link) if number.isdecimal() and number.isascii() else None
