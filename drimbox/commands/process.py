"""Commands that speak to the running process, through its admin listener."""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path
from typing import Any

import attrs
import click

from drimbox.commands.common import (
    Command,
    Failed,
    config_option,
    json_option,
    print_json,
    refused,
    tree_lines,
)
from drimbox.config import Listener
from drimbox.configfile import ConfigErrors, admin_listener
from drimbox.redaction import escape_control

TIMEOUT = 10.0
MAX_ANSWER = 16 * 1024 * 1024
#: The content of one row: a message of the largest size that can be configured.
MAX_CONTENT = 1024 * 1024 * 1024
#: What the admin listener announces (`web.admin.SERVER_NAME`), here without importing Twisted.
SERVER_NAME = "DRIMbox-admin"


class NotRunning(Failed):
    """Nothing listens where the process should."""


@attrs.frozen
class AdminClient:
    """Asks the running process; every failure is a `Failed` that says what to do."""

    host: str
    port: int

    @classmethod
    def of(cls, listener: Listener) -> AdminClient:
        """Return the client of a listener; one that listens everywhere is called on the loop."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not listened on
        return cls(everywhere.get(listener.host, listener.host), listener.port)

    @property
    def where(self) -> str:
        """The address, as it is written in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float = TIMEOUT
    ) -> Any:
        """Return the JSON answer of a success. Raises `Failed`."""
        content = self._exchange(method, path, body, timeout, MAX_ANSWER)
        try:
            return json.loads(content)
        except ValueError:
            raise Failed(f"réponse illisible de {self.where}.") from None

    def fetch(self, path: str) -> bytes:
        """Return the bytes that a POST on `path` gives. Raises `Failed`."""
        return self._exchange("POST", path, None, TIMEOUT, MAX_CONTENT)

    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float, limit: int
    ) -> bytes:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        headers = {"Content-Type": "application/json"} if method != "GET" else {}
        data = json.dumps(body or {}) if method != "GET" else None
        try:
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
            content = response.read(limit + 1)
        except ConnectionRefusedError:
            raise NotRunning(
                f"DRIMbox ne tourne pas : rien n'écoute sur {self.where}.\n"
                "Le démarrer (systemctl start drimbox), ou donner la bonne adresse avec --admin."
            ) from None
        except TimeoutError:
            raise Failed(f"DRIMbox n'a pas répondu en {timeout:g} s sur {self.where}.") from None
        except http.client.HTTPException:
            raise Failed(f"ce qui écoute sur {self.where} n'est pas DRIMbox.") from None
        except OSError as error:
            raise Failed(f"connexion à {self.where} impossible : {error.strerror or error}.") from None
        finally:
            connection.close()
        if response.getheader("Server") != SERVER_NAME or len(content) > limit:
            raise Failed(f"ce qui écoute sur {self.where} n'est pas DRIMbox.")
        if response.status >= 400:
            raise Failed(f"refusé par DRIMbox ({response.status}) : {_refusal(content)}")
        return content


def _refusal(content: bytes) -> str:
    """Return what an error answer says."""
    try:
        error = json.loads(content)["error"]["detail"]
    except (ValueError, KeyError, TypeError):
        error = ""
    return escape_control(str(error))


def _address(_: click.Context, __: click.Parameter, value: str | None) -> AdminClient | None:
    if value is None:
        return None
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+)):([0-9]{1,5})", value)
    if found is None:
        raise click.BadParameter("écrire ADRESSE:PORT, par exemple 127.0.0.1:9349")
    return AdminClient(found[1] or found[2], int(found[3]))


def admin_option(command: Command) -> Command:
    """Add `--admin` and `--config` to a command that speaks to the process."""
    add = click.option(
        "--admin",
        "client",
        callback=_address,
        metavar="ADRESSE:PORT",
        help="Écoute d'administration ; par défaut, celle de la configuration.",
    )
    return config_option(add(command))


def client_of(client: AdminClient | None, config_path: Path) -> AdminClient:
    """Return the client asked for, else the one the configuration gives. Raises `Failed`."""
    if client is not None:
        return client
    try:
        return AdminClient.of(admin_listener(config_path))
    except ConfigErrors as errors:
        raise refused(errors) from None


@click.command()
@admin_option
@json_option
def status(client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Afficher l'état du processus."""
    answer = client_of(client, config_path).ask("GET", "/status")
    if as_json:
        print_json(answer)
    else:
        click.echo("\n".join(tree_lines(answer)))
