"""`drimbox whitelist`: the list in force, a refresh now, and the judgement of any file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from drimbox.commands.common import Failed, json_option, local_time, print_json, tree_lines
from drimbox.commands.inspection import read_input
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.redaction import escape_control

#: What outcomes of a refresh are called on the screen.
_OUTCOMES = {
    "new": "nouvelle liste en vigueur",
    "same": "liste inchangée",
    "older": "liste refusée",
    "refused": "liste refusée",
    "unreachable": "liste non récupérée",
    "busy": "récupération déjà en cours",
}


@click.group(subcommand_metavar="COMMANDE ...")
def whitelist() -> None:
    """Liste blanche des DRIMbox autorisées."""


@whitelist.command()
@click.option("--accept-older", is_flag=True, help="Prendre une liste plus ancienne que celle en vigueur.")
@admin_option
@json_option
def refresh(accept_older: bool, client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Récupérer la liste maintenant (DB.CS.147)."""
    answer = client_of(client, config_path).ask(
        "POST", "/whitelist/refresh", {"accept_older": True} if accept_older else {}
    )
    if as_json:
        print_json(answer)
    else:
        click.echo(_OUTCOMES.get(answer["outcome"], str(answer["outcome"])).capitalize() + ".")
        for reason in answer["reasons"]:
            click.echo(f"  {escape_control(reason)}")
        click.echo("\n".join(tree_lines(_shown(answer))))
    if answer["outcome"] not in ("new", "same"):
        raise click.exceptions.Exit(1)


@whitelist.command()
@click.option("--domains", is_flag=True, help="Montrer aussi chaque entrée.")
@admin_option
@json_option
def show(domains: bool, client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Montrer la liste en vigueur."""
    answer = client_of(client, config_path).ask("GET", "/whitelist?domains=1" if domains else "/whitelist")
    if as_json:
        print_json(answer)
        return
    click.echo("\n".join(tree_lines(_shown(answer))))
    for each in answer.get("domains", ()):
        mark = "" if each["usable"] else "  (DN illisible : entrée sans effet)"
        click.echo(escape_control(f"{each['id']:>6}  {each['db']:<34} {each['name']}{mark}"))


@whitelist.command()
@click.argument("file", metavar="FICHIER")
@click.option(
    "--roots",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    metavar="CHEMIN",
    help="Autorités du signataire : fichier PEM ou DER, ou dossier de tels fichiers.",
)
@click.option(
    "--cn", default="Liste Blanche DRIM-M PROD", show_default=True, metavar="NOM", help="CN du signataire."
)
@click.option("--ou", default="318751275100020", show_default=True, metavar="NOM", help="OU du signataire.")
@click.option(
    "--crl",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FICHIER",
    help="Liste de révocation de l'autorité qui a émis le signataire (PEM ou DER).",
)
def verify(file: str, roots: Path, cn: str, ou: str, crl: Path | None) -> None:
    """Vérifier un fichier de liste blanche, et l'écrire en JSON (DB.CS.151).

    Le code de sortie est 1 quand la liste n'est pas valable ; « reasons » dit pourquoi.
    """
    data = read_input(file)
    found = _judge(data, roots, cn, ou, crl)
    print_json(found)
    if not found["valid"]:
        raise click.exceptions.Exit(1)


def _judge(data: bytes, roots: Path, cn: str, ou: str, crl: Path | None) -> dict[str, Any]:
    from drimbox.trust.certificates import CertificateUnusable, read_authorities, read_crl
    from drimbox.trust.names import identity
    from drimbox.trust.whitelist import examine
    from drimbox.web.trust import domain_facts

    try:
        trusted = read_authorities(roots)
        revoked = read_crl(crl) if crl is not None else None
        wanted = identity(cn, ou)
    except (CertificateUnusable, ValueError) as error:
        raise Failed(str(error)) from None
    found = examine(data, trusted, wanted, datetime.now(UTC), revoked)
    signer, listed = found.signer, found.whitelist
    return {
        "valid": listed is not None,
        "reasons": list(found.reasons),
        "signer": None
        if signer is None
        else {
            "subject": signer.subject.rfc4514_string(),
            "issuer": signer.issuer.rfc4514_string(),
            "serial": f"{signer.serial_number:X}",
            "not_before": signer.not_valid_before_utc.isoformat(),
            "not_after": signer.not_valid_after_utc.isoformat(),
        },
        "generated": listed.generated.isoformat() if listed is not None and listed.generated else None,
        "domains": [domain_facts(each) for each in listed.domains] if listed is not None else [],
    }


def _shown(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown of the state, with its French words."""
    return {
        "en vigueur": answer["in_force"],
        "générée le": local_time(answer["generated"]) or None,
        "entrées": answer["entries"],
        "certificat du signataire valable jusqu'au": local_time(answer["signer_expires"]) or None,
        "dernière récupération": local_time(answer["fetched"]) or None,
        "en échec depuis": local_time(answer["failing_since"]) or None,
        "nos sites y figurent": answer["sites"],
    }
