"""A stand whose admin listener asks who calls: TLS, and an account for each role."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from io import BytesIO
from typing import Any

import attrs
from twisted.internet.threads import deferToThread
from twisted.web.client import Agent, FileBodyProducer
from twisted.web.http_headers import Headers

from drimbox.accounts import Role, make_account, write_accounts
from drimbox.httpbody import read_body
from drimbox.sim.pki import Pair
from drimbox.sim.stand import Stand
from drimbox.trust.outgoing import client_policy

PASSWORDS = {"anne": "mot-de-passe-anne", "aude": "mot-de-passe-aude"}
ROLES = {"anne": Role.OPERATOR, "aude": Role.AUDITOR}


class AccountStand(Stand):
    """A stand whose admin listener asks who calls."""

    async def start(self) -> None:
        await super().start()
        self.administration: Pair = self.pki.issue_ssl_serv("localhost", name="administration")
        self.accounts = self.folder / "comptes"
        write_accounts(self.accounts, [make_account(name, ROLES[name], PASSWORDS[name]) for name in ROLES])
        pair = f'{{ certificate = "{self.administration.certificate}", key = "{self.administration.key}" }}'
        text = self.config.read_text("utf-8").replace(
            "[admin]\n", f'[admin]\ncertificate = {pair}\naccounts = "{self.accounts}"\n'
        )
        self.config.write_text(text, "utf-8")

    async def admin(self, path: str) -> tuple[int, bytes]:
        return await self.call("GET", path, "aude")

    async def post(
        self, method: str, path: str, name: str, data: bytes, **headers: str
    ) -> tuple[int, bytes]:
        """Call with a body, JSON unless `content_type` says otherwise."""
        headers.setdefault("content_type", "application/json")
        return await self.call(method, path, name, data=data, **headers)

    async def call(
        self,
        method: str,
        path: str,
        name: str = "",
        password: str = "",
        data: bytes | None = None,
        **headers: str,
    ) -> tuple[int, bytes]:
        """Call the listener over HTTPS, its certificate and name verified."""
        agent = Agent(self._reactor, client_policy(self.pki.roots, None), connectTimeout=10.0)
        given = Headers(
            {key.replace("_", "-").encode(): [value.encode()] for key, value in headers.items()}
        )
        if name:
            secret = f"{name}:{password or PASSWORDS[name]}"
            given.addRawHeader(b"Authorization", b"Basic " + base64.b64encode(secret.encode()))
        url = f"https://localhost:{self.admin_port}{path}".encode()
        producer = FileBodyProducer(BytesIO(data)) if data else None
        response: Any = await agent.request(method.encode(), url, given, producer)
        return response.code, await read_body(response, 16 * 1024 * 1024)


@attrs.define
class World:
    stand: AccountStand

    def audited(self) -> list[str]:
        """Return who did what, as the audit trail says."""
        with closing(sqlite3.connect(self.stand.folder / "state" / "drimbox.db")) as database:
            rows = database.execute("SELECT payload FROM audit ORDER BY id").fetchall()
        return [json.dumps(json.loads(row[0]), ensure_ascii=False) for row in rows]

    async def drimbox(self, *arguments: str, account: str = "anne", remote: bool = True) -> tuple[int, str]:
        """Run the command as an account: with the URL of the listener, or with the configuration."""
        credentials = self.stand.folder / f"credentials-{account}"
        credentials.write_text(f"{account}:{PASSWORDS[account]}\n")
        arguments = (*arguments, "--credentials", str(credentials))
        return await self.plain(*arguments, remote=remote)

    async def plain(self, *arguments: str, remote: bool = True) -> tuple[int, str]:
        """Run the command as nobody in particular; return its exit status and all that it wrote."""
        where = f"https://localhost:{self.stand.admin_port}"
        command = [sys.executable, "-m", "drimbox.cli", *arguments]
        command += ["--url", where, "--roots", str(self.stand.pki.roots)] if remote else []
        command += [] if remote else ["--config", str(self.stand.config)]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
        done: Any = await deferToThread(
            lambda: subprocess.run(
                command, capture_output=True, text=True, timeout=90, env=environment, check=False
            )
        )
        return done.returncode, done.stdout + done.stderr
