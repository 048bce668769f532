"""The logs: one harmless line per event, whatever a peer or a developer put in it."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer, task
from twisted.logger import LogBeginner, Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure

import drimbox
from drimbox import model
from drimbox.config import LogSettings
from drimbox.logs import (
    JsonObserver,
    LogFile,
    TextObserver,
    bind,
    bridge_stdlib,
    correlation_id,
    make_observer,
)
from drimbox.redaction import HIDDEN_INS, escape_control, redact, safe_target

INS = "255069999999934"
PACKAGE = Path(drimbox.__file__).parent
LOGGING = re.compile(r"\b_?log\.(debug|info|warn|error|critical|failure)$")


class Journal:
    """A logger and the lines it writes."""

    def __init__(self, kind: Any = JsonObserver, level: Any = LogLevel.debug) -> None:
        self.lines: list[str] = []
        self.observer = kind(self.lines.append, level)
        self.log = Logger(namespace="drimbox.essai", observer=self.observer)

    def at_zero(self, log_format: str, level: Any = LogLevel.info, **fields: object) -> None:
        """Give the observer an event of the first instant of Unix time."""
        head = {"log_format": log_format, "log_level": level, "log_namespace": "drimbox.essai"}
        self.observer({**head, "log_time": 0.0, **fields})

    @property
    def last(self) -> dict[str, Any]:
        assert self.lines[-1].endswith("\n")
        content: dict[str, Any] = json.loads(self.lines[-1])
        return content


def patient() -> model.Patient:
    return model.Patient(INS, model.INS_OIDS[0], "DUPONT", "JEANNE", "19550601", "F")


# --- form -------------------------------------------------------------------------------------------


def test_json_line_has_time_level_namespace_message_and_fields() -> None:
    journal = Journal()
    journal.at_zero("PACS {pacs} muet depuis {seconds} s", LogLevel.warn, pacs="PACS1", seconds=3)
    assert journal.last == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "warn",
        "namespace": "drimbox.essai",
        "message": "PACS PACS1 muet depuis 3 s",
        "pacs": "PACS1",
        "seconds": 3,
    }


def test_text_line() -> None:
    journal = Journal(TextObserver)
    journal.at_zero("délivrance finie", site="radio", peer="CHU de Brest", count=12)
    assert journal.lines == [
        "1970-01-01T00:00:00.000Z info     drimbox.essai: délivrance finie "
        'site=radio peer="CHU de Brest" count=12\n'
    ]


def test_level_filters() -> None:
    journal = Journal(level=LogLevel.warn)
    journal.log.info("non")
    journal.log.warn("oui")
    journal.log.critical("oui")
    assert len(journal.lines) == 2


@pytest.mark.parametrize(
    "namespace", ["twisted.internet.protocol.Factory", "log_legacy", "-", "twisted.web.http"]
)
def test_what_twisted_says_of_itself_is_debug(namespace: str) -> None:
    journal = Journal(level=LogLevel.info)
    chatty = Logger(namespace=namespace, observer=journal.observer)
    chatty.info("Starting factory {factory}", factory=object())
    assert journal.lines == []
    chatty.error("Unhandled error")
    assert journal.last["level"] == "error"


def test_traceback_is_one_field_on_one_line() -> None:
    for kind in (JsonObserver, TextObserver):
        journal = Journal(kind)
        try:
            raise ValueError("première ligne\nseconde")
        except ValueError:
            journal.log.failure("échec de {what}", what="l'essai")
        assert len(journal.lines) == 1
        assert journal.lines[0].count("\n") == 1
        assert "ValueError" in journal.lines[0]
    journal = Journal()
    journal.log.failure("x", Failure(KeyError("y")))
    assert "KeyError" in journal.last["traceback"]
    assert journal.last["level"] == "critical"


def test_fields_that_are_not_json_become_text() -> None:
    journal = Journal()
    journal.log.info(
        "x",
        path=Path("/a"),
        error=OSError("cassé"),
        data=b"123",
        nan=float("nan"),
        many={1, 2},
        deep=[[[[["x"]]]]],
    )
    last = journal.last
    assert (last["path"], last["error"], last["data"], last["nan"]) == ("/a", "cassé", "<3 octets>", "nan")
    assert sorted(last["many"]) == [1, 2]
    assert "x" not in json.dumps(last["deep"])


def test_enormous_fields_are_cut() -> None:
    journal = Journal()
    journal.log.info("{text}", text="x" * 10**6, items=list(range(10**4)))
    assert len(journal.lines[0]) < 12_000


def lines_of_ours() -> Iterator[tuple[str, str, list[str]]]:
    """Yield every message the package logs: where, its format, its fields."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(call, ast.Call) or not LOGGING.search(ast.unparse(call.func)):
                continue
            match call.args:
                case [ast.Constant(value=str(text)), *_]:
                    yield f"{path.name}:{call.lineno}", text, [each.arg or "" for each in call.keywords]


def test_every_line_of_ours_shows_all_it_names() -> None:
    """A field the observer keeps for itself leaves a message nobody can read."""
    lines = list(lines_of_ours())
    assert len(lines) > 100
    journal = Journal()
    for place, text, names in lines:
        if "" in names:  # `**fields`
            continue
        journal.at_zero(text, **dict.fromkeys(names, 7))
        assert "Unable to format" not in journal.last["message"], place


def test_wrong_format_does_not_lose_the_event_nor_raise() -> None:
    journal = Journal()
    journal.log.error("{absent} {0} {", field=1)
    assert journal.last["field"] == 1
    assert journal.last["level"] == "error"


def test_field_whose_text_cannot_be_made() -> None:
    class Awkward:
        def __str__(self) -> str:
            raise RuntimeError

    journal = Journal()
    journal.log.info("x {field}", field=Awkward())
    assert journal.last["field"] == "<Awkward>"


def test_a_sink_that_fails_does_not_raise(capfd: pytest.CaptureFixture[str]) -> None:
    def full(_: str) -> None:
        raise OSError(28, "plus de place")

    Logger(observer=JsonObserver(full, LogLevel.debug)).info("x")


# --- correlation ------------------------------------------------------------------------------------


def test_bound_fields_are_in_every_line_inside_and_not_after() -> None:
    journal = Journal()
    with bind(request="r1", site="radio"):
        journal.log.info("un")
        assert (journal.last["request"], journal.last["site"]) == ("r1", "radio")
        with bind(site="cardio"):
            journal.log.info("deux")
            assert (journal.last["request"], journal.last["site"]) == ("r1", "cardio")
        journal.log.info("trois", site="propre")
        assert journal.last["site"] == "propre"
    journal.log.info("quatre")
    assert "request" not in journal.last


@pytest_twisted.ensureDeferred
async def test_bound_fields_follow_each_coroutine_across_its_waits() -> None:
    journal = Journal()
    clock = task.Clock()

    async def work(name: str) -> None:
        with bind(request=name):
            await task.deferLater(clock, 1)
            journal.log.info("fini {own}", own=name)

    both = [defer.ensureDeferred(work(name)) for name in ("a", "b")]
    clock.advance(1)
    await defer.gatherResults(both)
    assert [json.loads(line)["request"] for line in journal.lines] == ["a", "b"]
    assert [json.loads(line)["own"] for line in journal.lines] == ["a", "b"]


def test_correlation_ids_differ() -> None:
    assert len({correlation_id() for _ in range(100)}) == 100


# --- no patient data, no secret ---------------------------------------------------------------------


@pytest.mark.threat("patient data in logs and notices")
@pytest.mark.threat("log and audit injection, flooding")
def test_a_model_object_shows_its_class_only() -> None:
    for kind in (JsonObserver, TextObserver):
        journal = Journal(kind)
        journal.log.info(
            "reçu {patient} {patient.family} {report!r}", patient=patient(), report=[patient()]
        )
        journal.log.info("reçu {patient}", patient=patient(), table={"p": patient()})
        assert "<Patient>" in journal.lines[-1]
        assert "DUPONT" not in "".join(journal.lines)
        assert INS not in "".join(journal.lines)


def test_the_source_of_an_event_is_not_printed() -> None:
    @attrs.frozen
    class Holder:
        patient: model.Patient

    journal = Journal()
    source = Logger(namespace="x", source=Holder(patient()), observer=journal.observer)
    source.info("source {log_source}")
    assert journal.last["message"] == "source <Holder>"
    source.info("source {log_source} {missing}")
    assert "DUPONT" not in "".join(journal.lines)


@pytest.mark.parametrize(
    "text",
    [
        INS,
        f"INS={INS}.",
        f"PID-3 {INS}^^^&1.2.250.1.213.1.4.8&ISO^INS",
        f"({INS})",
        "2 55 06 99 999 999 34",
        "155062A99999934",
        "NIA 755069999999934",
        f"/visionneuse?x={INS}&y=1",
    ],
)
def test_ins_like_numbers_are_hidden(text: str) -> None:
    assert HIDDEN_INS in redact(text)
    assert not any(part in redact(text) for part in (INS, "999999", "999 999"))


@pytest.mark.parametrize(
    "text",
    [
        "1.2.250.1.213.1.4.8.255069999999934",
        "1.2.255069999999934.1",
        "2.25.255069999999934255069999999934",
        "1470003641",
        "410003879623017",  # RPPS-rang of a practice, with its prefix
        "351012572500024",  # SIRET of a structure, with its prefix
        "899700000012",
        "20261122001417",
        "1700000000000",
    ],
)
def test_uids_and_identifiers_of_structures_stay(text: str) -> None:
    assert redact(text) == text


def test_ins_is_hidden_in_every_part_of_a_line() -> None:
    journal = Journal()
    with bind(bound=f"x {INS}"):
        try:
            raise ValueError(f"patient {INS} inconnu")
        except ValueError:
            journal.log.failure(
                "échec pour {who}", who=INS, number=int(INS), table={INS: [INS]}, error=KeyError(INS)
            )
    assert INS not in journal.lines[0]
    assert journal.lines[0].count(HIDDEN_INS) >= 7


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abc.def-ghi_123~+/==",
        "authorization: bearer   s3cr3t-token",
        "Basic ZHJpbWJveDpzM2NyM3Q=",
        "eyJhbGciOiJSUzI1NiJ9.s3cr3tpayload.signature",
        "POST /token?access_token=s3cr3t-token&x=1",
        '{"client_secret": "s3cr3t"}',
        "password = s3cr3t",
        "postgresql+psycopg://drimbox:s3cr3t@db/drimbox",
        "/visionneuse?requestType=STUDY&patientID=s3cr3t^^^x",
    ],
)
def test_tokens_and_secrets_are_hidden(text: str) -> None:
    hidden = redact(text)
    assert "masqué" in hidden
    assert not any(word in hidden for word in ("s3cr3t", "abc.def", "ZHJpb"))


def test_warnings_of_libraries_that_quote_their_data_lose_their_text() -> None:
    journal = Journal()
    publisher = LogPublisher()
    beginner = LogBeginner(
        publisher, sys.stderr, type("Sys", (), {"stdout": None, "stderr": None}), warnings
    )
    kept = warnings.showwarning
    try:
        beginner.beginLoggingTo([journal.observer], redirectStandardIO=False)
        warnings.showwarning("Invalid value 'DUPONT'", UserWarning, "/x/pydicom/valuerep.py", 3)  # type: ignore[arg-type]
    finally:
        warnings.showwarning = kept
    assert "valuerep.py:3" in journal.lines[-1]
    assert "DUPONT" not in journal.lines[-1]


def test_standard_loggers_are_bridged_from_warning_up(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal()
    from drimbox import logs

    monkeypatch.setattr(logs._Bridge, "_log", Logger(namespace="stdlib", observer=journal.observer))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    bridge_stdlib()
    bridge_stdlib()
    assert len(root.handlers) == 1
    logging.getLogger("alembic").info("tu")
    logging.getLogger("alembic").warning("table %s", "t")
    assert journal.last["message"] == "alembic: table t"
    logging.getLogger("pynetdicom.acse").error("DUPONT")
    assert "DUPONT" not in journal.lines[-1]
    assert journal.last["logger"] == "pynetdicom.acse"
    assert len(journal.lines) == 2


# --- injection --------------------------------------------------------------------------------------


@pytest.mark.threat("log and audit injection, flooding")
@given(st.text(max_size=200), st.sampled_from([JsonObserver, TextObserver]))
def test_no_peer_text_makes_a_second_line_or_drives_a_terminal(text: str, kind: Any) -> None:
    journal = Journal(kind)
    journal.log.info("pair {peer}", peer=text)
    (line,) = journal.lines
    body = line[:-1]
    assert line.endswith("\n")
    assert all(sign.isprintable() or sign not in "\n\r\x1b\x85\u2028\u202e\x00\x7f\x9b" for sign in body)
    assert len(body.splitlines()) == 1
    if kind is JsonObserver:
        assert json.loads(body)["peer"] == redact(text)


@pytest.mark.threat("log and audit injection, flooding")
def test_a_forged_line_stays_inside_its_own() -> None:
    forged = 'x"}\n{"time":"2026","level":"info","message":"tout va bien"}\r\x1b[2J\u202e'
    journal = Journal()
    journal.log.info("AE title {title}", title=forged)
    assert journal.last["title"] == forged
    journal = Journal(TextObserver)
    journal.log.info("AE title {title}", title=forged)
    assert journal.lines[0].count("\n") == 1
    assert "\x1b" not in journal.lines[0]


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    sink = LogFile(tmp_path / "x.log")
    Logger(observer=JsonObserver(sink.write, LogLevel.debug)).info("{x}", x="\ud800é")
    assert json.loads((tmp_path / "x.log").read_text(encoding="utf-8"))


def test_access_line_shows_the_path_and_never_the_query() -> None:
    target = b"/dicom-web-rs/studies/1.2.3/series/4.5"
    assert safe_target(target) == target.decode()
    assert safe_target(b"/visionneuse/IHEInvokeImageDisplay?patientID=" + INS.encode()) == (
        "/visionneuse/IHEInvokeImageDisplay"
    )
    assert "\n" not in safe_target(b"/a\nb\xff")
    assert len(safe_target(b"/" + b"a" * 9000)) == 300
    assert INS not in safe_target(b"/patients/" + INS.encode())


def test_escape_keeps_french() -> None:
    assert escape_control("« été » à Noël – 100 €") == "« été » à Noël – 100 €"


# --- files ------------------------------------------------------------------------------------------


def test_log_file_is_private_appends_and_follows_logrotate(tmp_path: Path) -> None:
    path = tmp_path / "d.log"
    path.write_text("avant\n")
    sink = LogFile(path)
    sink.write("un\n")
    assert path.read_text() == "avant\nun\n"
    path.rename(tmp_path / "d.log.1")
    sink.write("deux\n")
    assert path.read_text() == "deux\n"
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    path.unlink()
    sink.write("trois\n")
    assert path.read_text() == "trois\n"


def test_observer_follows_its_settings(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text = make_observer(LogSettings(format="text", level="error", file=tmp_path / "x"))
    Logger(namespace="n", observer=text).warn("non")
    Logger(namespace="n", observer=text).error("oui")
    assert (tmp_path / "x").read_text().endswith("n: oui\n")
    with pytest.raises(OSError, match="No such file"):
        make_observer(LogSettings(file=tmp_path / "absent" / "x"))


def test_standard_output_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    import subprocess

    code = (
        "from drimbox.logs import make_observer; from drimbox.config import LogSettings\n"
        "from twisted.logger import Logger\n"
        "Logger(observer=make_observer(LogSettings())).info('é {x}', x='€')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, timeout=60, check=True
    )
    assert json.loads(done.stdout.decode("utf-8"))["message"] == "é €"
