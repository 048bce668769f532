"""The `drimbox` command: what it prints, what it returns, and what it says when something is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import create_server
from typing import Any, ClassVar

import pytest
import pytest_twisted
from click.testing import CliRunner, Result
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.threads import deferToThread

from drimbox.cli import cli
from drimbox.commands import process
from drimbox.commands.common import tree_lines
from drimbox.config import Listener
from drimbox.web.admin import SERVER_NAME, admin_factory, core_api
from tests.operator_files import CONFIGS, good_config
from tests.web.notice_desk import NoticeDesk

ROOT = Path(__file__).parent.parent
STUDY = "1.2.250.1.999.77"


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], prog_name="drimbox", **options)


def drimbox(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "drimbox.cli", *map(str, arguments)],
        capture_output=True,
        timeout=60,
        env=environment,
        check=False,
        **options,
    )


# --- the command line -------------------------------------------------------------------------------


def test_help_and_mistakes_are_french() -> None:
    text = run("--help").output
    assert "Usage :" in text
    assert "Commandes:" in text
    assert "Afficher cette aide." in text
    for command in ("check-config", "status", "notices", "pacs", "inspect", "version"):
        assert command in text
    unknown = run("statut")
    assert unknown.exit_code == 2
    assert "Commande inconnue" in unknown.output
    assert "Option inconnue" in run("status", "--jsn").output


def test_every_command_has_a_french_help_without_a_reactor() -> None:
    for arguments in (
        ["status"],
        ["notices", "list"],
        ["pacs", "find"],
        ["inspect", "kos"],
        ["check-config"],
    ):
        result = run(*arguments, "--help")
        assert result.exit_code == 0
        assert "Afficher cette aide." in result.output


def test_version() -> None:
    assert run("version").output.startswith("DRIMbox ")


def test_output_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    done = drimbox("--help", env={"PYTHONIOENCODING": "latin-1", "LC_ALL": "C"})
    assert "Vérifier la configuration" in done.stdout.decode("utf-8")


def test_the_command_line_starts_without_loading_twisted() -> None:
    code = "import sys, drimbox.cli; print([name for name in sys.modules if name.startswith('twisted')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == b"[]"


# --- check-config -----------------------------------------------------------------------------------


def test_check_config_of_a_good_file(tmp_path: Path) -> None:
    result = run("check-config", "--config", good_config(tmp_path))
    assert result.exit_code == 0
    assert "configuration correcte (0 erreur, 0 avertissement)" in result.output


def test_check_config_prints_each_mistake_and_how_to_mend_it(tmp_path: Path) -> None:
    path = good_config(tmp_path, port="70000", pool='["A"]')
    line = path.read_text("utf-8").splitlines().index("port = 70000") + 1
    result = run("check-config", "--config", path)
    assert result.exit_code == 1
    assert "inutilisable (1 erreur, 1 avertissement)" in result.output
    assert f"erreur         site[0].pacs.port (ligne {line}) : 70000 n'est pas un port" in result.output
    assert "-> écrire un entier, sans guillemets" in result.output
    assert "avertissement  site[0].pacs.pool" in result.output


def test_check_config_in_json(tmp_path: Path) -> None:
    result = run("check-config", "--json", "--config", good_config(tmp_path, port="0"))
    assert result.exit_code == 1
    (error,) = json.loads(result.output)["errors"]
    assert error["path"] == "site[0].pacs.port"
    assert set(error) == {"path", "problem", "mend", "line"}


def test_configuration_is_found_by_the_environment(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    assert run("check-config", env={"DRIMBOX_CONFIG": str(path)}).exit_code == 0
    assert run("check-config", env={"DRIMBOX_CONFIG": str(tmp_path / "non.toml")}).exit_code == 1


@pytest.mark.threat("log and audit injection, flooding")
def test_a_file_cannot_drive_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('"\\u001b[2J" = 1\n[drimbox]\nname = "\\u001b]0;x\\u0007"\n', encoding="utf-8")
    result = run("check-config", "--config", path)
    assert result.exit_code == 1
    assert "\x1b" not in result.output


# --- the running process ----------------------------------------------------------------------------


class Gateway:
    """An admin listener on a real port, asked from a thread as another process would."""

    def __init__(self) -> None:
        self.desk = NoticeDesk("patient\x1b[2J inconnu")

    async def serve(self, use: Callable[[str], None]) -> None:
        async def status() -> dict[str, Any]:
            return {"name": "DRIMbox", "ready": True, "sites": [{"name": "radio", "waiting": None}]}

        async def ready() -> dict[str, bool]:
            return {}

        async def exposition() -> bytes:
            return b""

        api = self.desk.register(core_api(status=status, ready=ready, exposition=exposition))
        factory = admin_factory(api, Listener("127.0.0.1", 0), reactor)
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        try:
            await deferToThread(use, f"127.0.0.1:{port.getHost().port}")
        finally:
            await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_status_of_a_running_process() -> None:
    def use(admin: str) -> None:
        shown = run("status", "--admin", admin)
        assert shown.exit_code == 0
        assert shown.output.splitlines() == [
            "nom : DRIMbox",
            "accepte du travail : oui",
            "sites :",
            "  -",
            "    nom : radio",
            "    en attente : -",
        ]
        assert json.loads(run("status", "--json", "--admin", admin).output)["sites"][0]["name"] == "radio"

    await Gateway().serve(use)


@pytest_twisted.ensureDeferred
async def test_notices_are_listed_and_acknowledged() -> None:
    gateway = Gateway()

    def use(admin: str) -> None:
        shown = run("notices", "list", "--admin", admin)
        there = f"{datetime(2026, 11, 22, 10, tzinfo=UTC).astimezone():%Y-%m-%d %H:%M:%S}"
        line = f"7  {there}  attention    E006  patient\\u001b[2J inconnu (2 fois depuis le {there})"
        assert line in shown.output
        assert json.loads(run("notices", "list", "--json", "--admin", admin).output)[0]["id"] == 7
        done = run("notices", "ack", "7", "--by", "marie", "--admin", admin)
        assert (done.exit_code, done.output) == (0, "Avis 7 acquitté.\n")
        absent = run("notices", "ack", "4", "--admin", admin)
        assert absent.exit_code == 1
        assert "aucun avis ouvert ne porte le numéro 4" in absent.output
        nowhere = run("notices", "test", "--admin", admin)
        assert nowhere.exit_code == 1
        assert "aucun envoi configuré" in nowhere.output

    await gateway.serve(use)
    assert gateway.desk.acknowledged == [7, 4]
    assert gateway.desk.by[0] == "admin (marie)"


@pytest_twisted.ensureDeferred
async def test_address_comes_from_the_configuration(tmp_path: Path) -> None:
    def use(admin: str) -> None:
        path = good_config(tmp_path, extra=f"\n[admin]\nport = {admin.rpartition(':')[2]}\n")
        (tmp_path / "auth.key").unlink()  # what the operator may not read does not matter
        assert run("status", "--config", path).exit_code == 0

    await Gateway().serve(use)


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def test_a_process_that_does_not_run_is_said_clearly(tmp_path: Path) -> None:
    port = free_port()
    path = good_config(tmp_path, extra=f"\n[admin]\nport = {port}\n")
    result = run("status", "--config", path)
    assert result.exit_code == 1
    assert f"DRIMbox ne tourne pas : rien n'écoute sur 127.0.0.1:{port}" in result.output
    assert "Traceback" not in result.output


def test_a_process_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TIMEOUT", 0.2)
    with create_server(("127.0.0.1", 0)) as listening:
        result = run("status", "--admin", f"127.0.0.1:{listening.getsockname()[1]}")
    assert result.exit_code == 1
    assert "n'a pas répondu" in result.output


class Stranger(BaseHTTPRequestHandler):
    """Another program on the port."""

    body: ClassVar[bytes] = b"<html>"
    server_header: ClassVar[str] = "nginx"

    def do_GET(self) -> None:
        self.send_response_only(200)
        self.send_header("Server", self.server_header)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def stranger() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_program_on_the_port(stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "n'est pas DRIMbox" in run("status", "--admin", stranger).output
    monkeypatch.setattr(Stranger, "server_header", SERVER_NAME.decode())
    assert "réponse illisible" in run("status", "--admin", stranger).output
    monkeypatch.setattr(process, "MAX_ANSWER", 3)
    assert "n'est pas DRIMbox" in run("status", "--admin", stranger).output


def test_a_program_that_does_not_speak_http() -> None:
    def answer() -> None:
        client, _ = listening.accept()
        client.recv(1000)
        client.sendall(b"\x01\x00ordure\r\n\r\n")
        client.close()

    with create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer)
        thread.start()
        result = run("status", "--admin", f"127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    assert result.exit_code == 1
    assert "n'est pas DRIMbox" in result.output


def test_names_agree_between_the_two_sides() -> None:
    assert SERVER_NAME.decode() == process.SERVER_NAME


@pytest.mark.parametrize(
    ("listener", "where"),
    [
        (Listener("0.0.0.0", 1), "127.0.0.1:1"),
        (Listener("::", 1), "[::1]:1"),
        (Listener("10.0.0.1", 9), "10.0.0.1:9"),
    ],
)
def test_a_listener_on_every_address_is_called_on_the_loop(listener: Listener, where: str) -> None:
    assert process.AdminClient.of(listener).where == where


def test_wrong_admin_address_is_a_usage_mistake() -> None:
    result = run("status", "--admin", "ici")
    assert result.exit_code == 2
    assert "ADRESSE:PORT" in result.output


def test_tree_of_any_json_is_printable() -> None:
    assert tree_lines({"a": [], "b": {"c": [1, {"d": "x\ny"}]}, "e": False}) == [
        "a : -",
        "b :",
        "  c :",
        "    - 1",
        "    -",
        "      d : x\\u000ay",
        "e : non",
    ]


# --- PACS -------------------------------------------------------------------------------------------


@pytest.fixture
def pacs() -> Iterator[int]:
    """A PACS of pynetdicom that knows one study of two series and refuses callers it does not know."""
    from pydicom.dataset import Dataset
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import (
        StudyRootQueryRetrieveInformationModelFind as StudyFind,
    )
    from pynetdicom.sop_class import Verification

    instances = [("1.2.3.1", "CT", number) for number in range(3)] + [("1.2.3.2", "SR", 9)]

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        if wanted.get("StudyInstanceUID") != STUDY:
            return
        for series, modality, number in instances:
            if wanted.get("SeriesInstanceUID") not in (None, "", series):
                continue
            if wanted.QueryRetrieveLevel != "IMAGE" and number not in (0, 9):
                continue
            answer = Dataset()
            answer.QueryRetrieveLevel = wanted.QueryRetrieveLevel
            answer.StudyInstanceUID, answer.SeriesInstanceUID, answer.Modality = STUDY, series, modality
            answer.SOPInstanceUID = f"{series}.{number + 1}"
            answer.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
            answer.PatientID, answer.PatientName = "IPP1", "DUPONT^JEANNE"
            yield 0xFF00, answer

    entity = AE("ESSAI")
    entity.require_calling_aet = ["DRIMBOX"]
    entity.add_supported_context(Verification)
    entity.add_supported_context(StudyFind)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    yield server.server_address[1]
    server.shutdown()


@pytest.mark.requirement("DB.SO.05")
def test_echo_of_the_configured_pacs(tmp_path: Path, pacs: int) -> None:
    path = good_config(tmp_path, host='"127.0.0.1"', port=str(pacs), ae_title='"ESSAI"')
    (tmp_path / "auth.key").unlink()  # certificates do not matter to a link test
    done = drimbox("pacs", "echo", "--config", path)
    assert done.returncode == 0, done.stderr
    assert f"PACS1 (ESSAI@127.0.0.1:{pacs}) : répond en" in done.stdout.decode()
    (answer,) = json.loads(drimbox("pacs", "echo", "--json", "--config", path).stdout)
    assert answer["pacs"] == "PACS1"
    assert 0 <= answer["seconds"] < 10


def test_echo_without_configuration_and_under_another_title(pacs: int) -> None:
    assert drimbox("pacs", "echo", "--to", f"ESSAI@127.0.0.1:{pacs}").returncode == 0
    refused = drimbox("pacs", "echo", "--to", f"ESSAI@127.0.0.1:{pacs}", "--as", "INCONNU")
    assert refused.returncode == 1
    assert "connaît l'AE title « INCONNU »" in refused.stdout.decode()
    assert b"Traceback" not in refused.stderr


def test_find_lists_series_and_no_patient(pacs: int) -> None:
    done = drimbox("pacs", "find", "--study", STUDY, "--to", f"ESSAI@127.0.0.1:{pacs}")
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "2 série(s), 4 image(s)" in text
    assert "CT        3 image(s)  1.2.3.1" in text
    assert "DUPONT" not in text
    assert "IPP1" not in text


def test_find_of_an_absent_study(pacs: int) -> None:
    done = drimbox("pacs", "find", "--json", "--study", "1.2.3", "--to", f"ESSAI@127.0.0.1:{pacs}")
    assert done.returncode == 1
    assert json.loads(done.stdout) == [{"pacs": "ESSAI", "found": False}]


def test_pacs_that_is_not_there() -> None:
    done = drimbox("pacs", "echo", "--to", f"ESSAI@127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "vérifier l'adresse et le port" in done.stdout.decode()
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "ESSAI"], "AETITLE@hote:port"),
        (["--to", "ESSAI@h:0"], "n'est pas un port"),
        (["--to", "@h:104"], "n'est pas un AE title"),
        (["--to", "ESSAI@h:٣"], "n'est pas un port"),
        (["--as", "TROP-LONG-POUR-UN-AE"], "n'est pas un AE title"),
    ],
)
def test_wrong_targets_are_usage_mistakes(arguments: list[str], words: str) -> None:
    result = run("pacs", "echo", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_wrong_study_uid_is_a_usage_mistake() -> None:
    assert run("pacs", "find", "--study", "../x").exit_code == 2


@pytest.mark.requirement("DB.SO.165")
def test_a_native_site_has_no_pacs_to_try(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    head = path.read_text("utf-8").partition("[site.pacs]")[0]
    path.write_text(head + '[site.native]\nname = "A"\nkind = "orthanc"\nurl = "http://localhost:8042"\n')
    assert run("check-config", "--config", path).exit_code == 0
    for arguments in (["echo"], ["find", "--study", "1.2.3"], ["echo", "--site", "radio"]):
        result = run("pacs", *arguments, "--config", path)
        assert result.exit_code == 1
        assert "archive native" in result.output


def test_unknown_site_names_the_known_ones(tmp_path: Path) -> None:
    result = run("pacs", "echo", "--site", "cardio", "--config", good_config(tmp_path))
    assert result.exit_code == 1
    assert "aucun site ne s'appelle « cardio » ; sites configurés : radio" in result.output


def test_wrong_configuration_is_said_in_full(tmp_path: Path) -> None:
    result = run("pacs", "echo", "--config", CONFIGS / "many-mistakes.toml")
    assert result.exit_code == 1
    assert result.output.count("erreur ") == 6


# --- inspect ----------------------------------------------------------------------------------------


def test_inspect_says_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    for kind in ("report", "kos"):
        result = run("inspect", kind, tmp_path / "absent")
        assert result.exit_code == 1
        assert "fichier introuvable" in result.output
    (tmp_path / "x").write_bytes(b"ordure")
    result = run("inspect", "kos", tmp_path / "x")
    assert result.exit_code == 1
    assert "DICOM illisible" in result.output


def test_inspect_report_of_what_is_none_fails_with_its_reason() -> None:
    result = run("inspect", "report", "-", input=b"ordure")
    assert result.exit_code == 1
    found = json.loads(result.output)
    assert found["feed"] is False
    assert found["reason"]


def test_inspect_refuses_enormous_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from drimbox.commands import inspection

    monkeypatch.setattr(inspection, "MAX_FILE_BYTES", 10)
    assert "plus de" in run("inspect", "kos", "-", input=b"x" * 11).output
