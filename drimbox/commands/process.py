"""Commands that speak to the running process, through its admin listener."""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
from collections.abc import Callable
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
from drimbox.commands.words import french
from drimbox.config import Listener
from drimbox.configfile import ConfigErrors, admin_listener
from drimbox.redaction import escape_control
from drimbox.secretfile import SecretUnusable, read_secret
from drimbox.systemerrors import system_reason

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
    tls: bool = False
    #: Certificate that the listener must show, DER; None verifies it by `roots` and its name.
    pinned: bytes | None = None
    #: PEM file of the authorities of its certificate; None uses the system's.
    roots: Path | None = None
    #: PEM files of our own certificate, with its chain, and of its key; None shows none.
    certificate: Path | None = None
    key: Path | None = None
    #: `name:password`; None gives none.
    credentials: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def of(cls, listener: Listener) -> AdminClient:
        """Return the client of a listener; one that listens everywhere is called on the loop.

        Raises `Failed` when its certificate, which must be the one that is met, cannot be read.
        """
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not listened on
        client = cls(everywhere.get(listener.host, listener.host), listener.port)
        if listener.certificate is None:
            return client
        # Only where TLS is configured: it takes longer to import than all commands together.
        from cryptography.hazmat.primitives.serialization import Encoding

        from drimbox.keypairs import CertificateUnusable, read_leaf

        try:
            pinned = read_leaf(listener.certificate).public_bytes(Encoding.DER)
        except CertificateUnusable as error:
            raise Failed(str(error)) from None
        return attrs.evolve(client, tls=True, pinned=pinned)

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
        connection = self._connection(timeout)
        headers = {"Content-Type": "application/json"} if method != "GET" else {}
        if self.credentials is not None:
            encoded = base64.b64encode(self.credentials.encode()).decode("ascii")
            headers["Authorization"] = f"Basic {encoded}"
        data = json.dumps(body or {}) if method != "GET" else None
        try:
            self._connect(connection)
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
        except ssl.SSLError:
            shown = " (le nôtre, ou le sien)" if self.certificate is not None else ""
            raise Failed(f"certificat{shown} ou négociation TLS refusés : {self.where}.") from None
        except http.client.HTTPException:
            raise Failed(f"ce qui écoute sur {self.where} n'est pas DRIMbox.") from None
        except OSError as error:
            raise Failed(f"connexion à {self.where} impossible : {system_reason(error)}.") from None
        finally:
            connection.close()
        if response.getheader("Server") != SERVER_NAME or len(content) > limit:
            raise Failed(f"ce qui écoute sur {self.where} n'est pas DRIMbox.")
        if response.status >= 400:
            raise Failed(f"refusé par DRIMbox ({response.status}) : {_refusal(content)}")
        return content

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if not self.tls:
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            context = ssl.create_default_context(cafile=str(self.roots) if self.roots else None)
        except OSError:
            raise Failed(f"{self.roots} : certificats illisibles.") from None
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except OSError:
                key = self.key or self.certificate
                raise Failed(f"{self.certificate} et {key} : certificat et clé illisibles.") from None
        if self.pinned is not None:
            # The very certificate says more than who signed it.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=context)

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        """Connect, and make sure of whom before anything is said."""
        connection.connect()
        if self.pinned is None:
            return
        assert isinstance(connection.sock, ssl.SSLSocket)
        if connection.sock.getpeercert(binary_form=True) != self.pinned:
            raise Failed(f"{self.where} ne présente pas le certificat de la configuration.")


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
    found = re.fullmatch(r"(https://)?(?:\[([^\]]+)\]|([^:/]+)):([0-9]{1,5})/?", value)
    if found is None:
        raise click.BadParameter("écrire ADRESSE:PORT ou https://NOM:PORT, par exemple 127.0.0.1:9349")
    return AdminClient(found[2] or found[3], int(found[4]), tls=bool(found[1]))


#: Where `_keep` puts what the two options below say.
_META = "drimbox.admin"


def _keep(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.meta[f"{_META}.{parameter.name}"] = value


def admin_option(command: Command) -> Command:
    """Add `--admin` and `--config` to a command that speaks to the process."""
    for add in (
        click.option(
            "--admin",
            "--url",
            "client",
            callback=_address,
            envvar="DRIMBOX_ADMIN",
            metavar="ADRESSE:PORT",
            help="Écoute d'administration (à distance https://NOM:PORT) ; par défaut, celle configurée.",
        ),
        _path_option(
            "--credentials", "DRIMBOX_CREDENTIALS", "Fichier d'une ligne « compte:mot de passe »."
        ),
        _path_option(
            "--certificate",
            "DRIMBOX_ADMIN_CERTIFICATE",
            "Notre certificat client (PEM), au lieu d'un compte.",
        ),
        _path_option("--key", "DRIMBOX_ADMIN_KEY", "Sa clé (PEM) ; par défaut, dans le même fichier."),
        _path_option("--roots", "DRIMBOX_ADMIN_ROOTS", "Autorités du certificat de cette écoute (PEM)."),
    ):
        command = add(command)
    return config_option(command)


def _path_option(name: str, variable: str, told: str) -> Callable[[Command], Command]:
    return click.option(
        name,
        type=click.Path(path_type=Path, dir_okay=False),
        callback=_keep,
        expose_value=False,
        envvar=variable,
        metavar="FICHIER",
        help=told,
    )


def client_of(client: AdminClient | None, config_path: Path) -> AdminClient:
    """Return the client asked for, else the one the configuration gives. Raises `Failed`."""
    if client is None:
        try:
            client = AdminClient.of(admin_listener(config_path))
        except ConfigErrors as errors:
            raise refused(errors) from None
    meta = click.get_current_context().meta
    roots, certificate, key, given = (
        meta.get(f"{_META}.{name}") for name in ("roots", "certificate", "key", "credentials")
    )
    client = attrs.evolve(client, roots=roots, certificate=certificate, key=key)
    if certificate is not None and not client.tls:
        raise Failed("un certificat client demande TLS : écrire --url https://NOM:PORT.")
    if given is None:
        return client
    if not client.tls and client.host not in ("127.0.0.1", "::1", "localhost"):
        raise Failed("le mot de passe partirait en clair : écrire --url https://NOM:PORT.")
    try:
        return attrs.evolve(client, credentials=read_secret(given, blanks=True))
    except SecretUnusable as error:
        raise Failed(str(error)) from None


@click.command()
@click.option(
    "--live",
    is_flag=True,
    help="Dire seulement s'il vit (/live, sans compte) : rien n'est affiché, code de sortie 0 ou 1.",
)
@admin_option
@json_option
def status(live: bool, client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Afficher l'état du processus."""
    process = client_of(client, config_path)
    if live:
        process.ask("GET", "/live")
        return
    answer = process.ask("GET", "/status")
    if as_json:
        print_json(answer)
    else:
        click.echo("\n".join(tree_lines(french(answer))))
