"""What the keys and values of an answer are called on the screen; `--json` shows them as they are."""

from __future__ import annotations

import re
from typing import Any

from drimbox.commands.common import local_time

#: Names of the work a queue row stands for, and of what became of it, wherever they are.
QUEUE_STATES = {
    "waiting": "en attente",
    "in_hand": "en cours",
    "put_off": "remise à plus tard",
    "failed": "en échec",
    "parked": "mise de côté",
    "done": "terminée",
    "dropped": "abandonnée",
}
KINDS = {"publish": "publication", "remove": "retrait"}
TITLE_STATES = {"free": "libre", "leased": "pris", "quarantined": "en quarantaine"}
_KOS_STATES = {
    "pending": "en attente du DMP",
    "published": "publié",
    "replaced": "remplacé",
    "depublished": "retiré",
    "refused": "refusé",
}
_KEYS = {
    **QUEUE_STATES,
    **_KOS_STATES,
    "ready": "accepte du travail",
    "queues": "files",
    "kos": "KOS",
    "homologation": "mode homologation",
    "enabled": "actif",
    "notices": "avis ouverts",
    "node": "nœud",
    "nodes": "nœuds",
    "oldest": "plus ancienne",
    "name": "nom",
    "since": "depuis",
    "alive": "vivant",
    "roles": "rôles",
    "sites": "sites",
    "wado": "nom WADO-RS",
    "image_access": "accès aux images",
    "pacs": "PACS",
    "ae_titles": "AE titles",
    "readings": "lectures",
    "used": "en cours",
    "most": "au plus",
    "id": "numéro",
    "queue": "file",
    "state": "état",
    "attempts": "essais",
    "failures": "échecs imprévus de suite",
    "reason": "motif",
    "due_at": "échéance",
    "came_at": "arrivée",
    "finished_at": "fin",
    "ris": "RIS",
    "peer": "adresse de l'émetteur",
    "result": "résultat",
    "size": "octets",
    "jobs": "examens à comparer",
    "study_uid": "examen",
    "message_id": "message",
    "purpose": "but",
    "outbox": "envois au DMP",
    "kind": "sorte",
    "outcome_unknown": "issue du dernier envoi inconnue",
    "warnings": "avertissements du DMP",
    "kos_id": "numéro du KOS",
    "sop_instance_uid": "SOPInstanceUID du KOS",
}
#: Values that are words of ours, by the key they stand under.
_VALUES = {
    "state": QUEUE_STATES,
    "kind": KINDS,
    "kos": _KOS_STATES,
    "purpose": {"match": "comparer", "update": "mettre à jour", "withdraw": "retirer"},
    "ae_titles": TITLE_STATES,
}
_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}.*")


def french(value: Any, key: str = "") -> Any:
    """Return an answer with its keys, states and instants as an operator reads them."""
    if isinstance(value, dict):
        if key == "queues":
            return {name: french(item) for name, item in value.items()}
        if key == "ae_titles":
            return {name: french(item, key) for name, item in value.items()}
        return {_KEYS.get(name, name): french(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [french(item, key) for item in value]
    if isinstance(value, str):
        known = _VALUES.get(key, {}).get(value, value)
        return local_time(known) if _INSTANT.fullmatch(known) else known
    return value
