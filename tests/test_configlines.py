"""Each mistake of the configuration is given with the line it stands on."""

from __future__ import annotations

from pathlib import Path

import pytest

from drimbox.configfile import ConfigMistake, check
from drimbox.configfile.lines import with_lines

DOCUMENT = """\
[drimbox]
state_dir = "/x"  # oui

[[ris]]
name = "a"
[hl7.tls]
client_certificates = "none"
[[ site ]]
name = "un"
[site.pacs]
port = 104
pool = [
    "A",
]
[[site]]  # le second
wado_certificate = { certificate = "a", key = "b" }
[site.pacs]
port = 105
[[admin.client]]
cn = "x"
[[admin.client]]
cn = "y"
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("drimbox", 1),
        ("drimbox.state_dir", 2),
        ("drimbox.system_id", 1),  # absent: where it is to be written
        ("ris[0].name", 5),
        ("hl7.tls.client_certificates", 7),
        ("site", 8),
        ("site[0].pacs.port", 11),
        ("site[0].pacs.pool", 12),
        ("site[0].pacs.pool[1]", 12),
        ("site[1]", 15),
        ("site[1].wado_certificate.key", 16),
        ("site[1].pacs.port", 18),
        ("site[1].pacs.host", 17),
        ("admin.client[1].cn", 22),
        ("dmp.roots", None),
        ("ligne 3, colonne 4", None),
        ("/etc/drimbox/drimbox.toml", None),
        ("", None),
        # Keys nobody foresaw: quoted, with anything in them.
        ('drimbox."a.b["', 1),
        ('"[2J".]', None),
    ],
)
def test_a_mistake_has_the_line_of_its_key_or_of_what_is_around_it(path: str, line: int | None) -> None:
    (placed,) = with_lines([ConfigMistake(path, "", "")], DOCUMENT)
    assert placed.line == line


def test_errors_and_warnings_of_a_file_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "drimbox.toml"
    path.write_text('# un\n[drimbox]\nstate_dir = 3\nsystem_id = "350"\n')
    errors, warnings = check(path)
    assert next(each.line for each in errors if each.path == "drimbox.state_dir") == 3
    assert next(each.line for each in warnings if each.path == "drimbox.oid") == 2
