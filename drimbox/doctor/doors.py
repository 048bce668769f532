"""The front ends before our doors: which are declared, and whether they say who calls (PROXY protocol)."""

from __future__ import annotations

from drimbox import metrics
from drimbox.config import Config
from drimbox.doctor.findings import Finding, doubtful, good
from drimbox.limits import Why


def front_ends(config: Config) -> list[Finding]:
    """Say of each door whose connections it takes for those of a front end, and what this process saw."""
    return [
        _door(name, addresses, _refused(name))
        for name, addresses in (("wado", config.wado.front_ends), ("hl7", config.hl7.front_ends))
    ]


def _refused(door: str) -> int:
    labels = {"door": door, "reason": Why.FRONT_END.name.lower()}
    return int(metrics.REGISTRY.get_sample_value("drimbox_connections_refused_total", labels) or 0)


def _door(name: str, addresses: tuple[str, ...], refused: int) -> Finding:
    if not addresses:
        text = "aucun frontal déclaré : l'adresse d'une connexion est celle du client lui-même"
        return good("front-end", name, text)
    text = f"en-tête PROXY exigé de {', '.join(addresses)}"
    if refused:
        text += f" ; {refused} connexion(s) refusée(s) depuis le démarrage, sans en-tête ou illisible"
        mend = (
            "dans ce frontal : send-proxy-v2 vers cette porte, contrôles de santé compris "
            f"(check-send-proxy) ; ou retirer son adresse de {name}.front_ends"
        )
        return doubtful("front-end", name, text, mend)
    return good("front-end", name, text)
