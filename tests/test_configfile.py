"""The configuration file: what is read from a good one, and what is said of every bad one."""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    load_pem_private_key,
    pkcs12,
)
from hypothesis import given
from hypothesis import strategies as st

from drimbox import config as classes
from drimbox.config import Config
from drimbox.configfile import ConfigErrors, admin_listener, check, keys_of, load, reference
from drimbox.configfile.keys import RULES
from drimbox.configfile.rules import Rejected, duration, https_url, pattern, several, size
from drimbox.sim.authority import Authority, authority_name, pem
from tests.operator_files import CONFIGS, EXAMPLE, NOW, good_config, pair, write_private

BAD = sorted(path for path in CONFIGS.glob("*.toml") if path.name != "good.toml")


def said(path: Path, **options: Any) -> list[str]:
    """Return what `check` says, in the form of the heads of tests/configs."""
    errors, warnings = check(path, **options)
    return [
        line
        for word, mistakes in (("erreur", errors), ("avertissement", warnings))
        for mistake in mistakes
        for line in (f"#! {word} {mistake}", f"#!   {mistake.mend}")
    ]


def errors_of(path: Path, **options: Any) -> dict[str, str]:
    return {mistake.path: mistake.problem for mistake in check(path, **options)[0]}


def warnings_of(path: Path, **options: Any) -> dict[str, str]:
    return {mistake.path: mistake.problem for mistake in check(path, **options)[1]}


# --- golden files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_says_what_its_head_says(path: Path) -> None:
    expected = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#!")]
    assert expected
    assert said(path, files=False) == expected


def test_good_file_says_nothing_and_loads(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    assert said(path) == []
    config = load(path)
    assert config.sites[0].pacs.pool == ("BOX1", "BOX2", "BOX3")
    assert config.drimbox.state_dir == tmp_path / "state"
    assert config.hl7 == classes.Hl7Settings()
    assert config.admin == classes.Listener("127.0.0.1", 9349)


@pytest.mark.requirement("DB.SO.35")
def test_fewer_than_three_deliveries_do_not_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"wado\.max_deliveries"):
        load(good_config(tmp_path, extra="\n[wado]\nmax_deliveries = 2\n"))
    assert load(good_config(tmp_path, extra="\n[wado]\nmax_deliveries = 3\n")).wado.max_deliveries == 3


@pytest.mark.requirement("DB.SO.16", "DB.SO.191")
def test_strictness_without_a_check_is_a_warning(tmp_path: Path) -> None:
    where = "site[0].check_feed_strictly"
    path = good_config(tmp_path)
    good = path.read_text(encoding="utf-8")
    assert "[[site]]\n" in good
    for keys, warned in (
        ("", False),
        ("check_feed_strictly = true\n", True),
        ("check_feed_strictly = true\ncheck_feed_identity = true\n", False),
        ("check_feed_strictly = true\ncheck_feed_birth_date = true\n", False),
    ):
        path.write_text(good.replace("[[site]]\n", "[[site]]\n" + keys, 1), encoding="utf-8")
        assert errors_of(path) == {}
        assert (where in warnings_of(path)) is warned, keys
    (here,) = load(path).sites
    assert (here.check_feed_identity, here.check_feed_birth_date, here.check_feed_strictly) == (
        False,
        True,
        True,
    )


# --- the example ------------------------------------------------------------------------------------


def example_files(folder: Path, text: str) -> Path:
    """Write the example beside the files it names."""
    for name in ("chu-auth", "chu-sign", "db1", "db2", "db3", "vi1", "hl7", "audit", "admin"):
        certificate, key = pair(f"{name}.350.mesimagesmedicales.fr")
        write_private(folder / "certs" / f"{name}.key", key)
        (folder / "certs" / f"{name}.pem").write_bytes(certificate)
    for name in (
        "igc-sante-ssl.pem",
        "igc-sante-ssl-serv.pem",
        "igc-sante-org.pem",
        "messagerie.pem",
        "etablissement.pem",
        "audit.pem",
        "supervision.pem",
        "liste-blanche.xml",
    ):
        write_private(folder / "trust" / name, pair("racine")[0])
    p12 = pkcs12.serialize_key_and_certificates(
        b"psc",
        load_pem_private_key(key, None),
        x509.load_pem_x509_certificate(certificate),
        None,
        BestAvailableEncryption(b"secret"),
    )
    write_private(folder / "certs" / "psc.p12", p12)
    for name in ("psc-client", "psc-p12", "orthanc", "postgresql", "smtp", "supervision", "proxy"):
        write_private(folder / "secrets" / name, b"secret\n")
    write_private(folder / "secrets" / "comptes", b"")
    administration = Authority.create(authority_name("AC ADMINISTRATION", "CHU"))
    (folder / "trust" / "administration.pem").write_bytes(pem(administration.certificate))
    crl = administration.crl().public_bytes(Encoding.DER)
    (folder / "trust" / "administration.crl").write_bytes(crl)
    path = folder / "drimbox.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.requirement("DB.SO.04", "DB.SO.05", "DB.SO.140", "DB.SO.173", "DB.SO.188")
def test_example_gives_three_sites_with_their_pacs_or_archive_ris_and_names(tmp_path: Path) -> None:
    config = load(example_files(tmp_path, EXAMPLE.read_text(encoding="utf-8")))
    first, second, third = config.sites
    assert first.pacs is not None
    assert second.pacs is not None
    assert third.native == classes.Native("ARCHIVE3", "orthanc", "http://127.0.0.1:8042")
    assert third.pacs is None
    assert third.ris == ("ris-radiologie", "ris-cardiologie")
    assert [site.archive for site in config.sites] == ["PACS1", "PACS2", "ARCHIVE3"]
    assert (first.pacs.ae_title, first.pacs.host, first.pacs.port) == (
        "PACSRADIO",
        "pacs.radio.exemple.fr",
        104,
    )
    assert (second.pacs.ae_title, second.pacs.host, second.pacs.port) == ("PACSCARDIO", "10.20.0.5", 11112)
    assert [ris.name for ris in config.ris] == ["ris-radiologie", "ris-cardiologie"]
    assert (first.ris, second.ris) == (("ris-radiologie",), ("ris-cardiologie",))
    assert [site.wado_fqdn for site in config.sites] == [
        "db1.350.mesimagesmedicales.fr",
        "db2.350.mesimagesmedicales.fr",
        "db3.350.mesimagesmedicales.fr",
    ]
    assert config.wado.prefixes[0] == "dicom-web-rs"


def test_example_has_no_error_but_the_files_it_cannot_bring(tmp_path: Path) -> None:
    path = example_files(tmp_path, EXAMPLE.read_text(encoding="utf-8"))
    errors, warnings = check(path)
    assert errors == []
    # What an example cannot know: identity given by the authorities, folders of the machine.
    expected = {"drimbox.oid", "drimbox.serial_number", "drimbox.dmp_certification", "drimbox.state_dir"}
    assert {warning.path for warning in warnings} - expected == set()


def uncommented() -> str:
    """Return the example with every key, and every section, that it shows as a comment."""
    return re.sub(r"^#(?=[a-z0-9_]+ = |\[)", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def together(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what repeated tables show between them; the first that has a key counts."""
    return {key: value for table in reversed(tables) for key, value in table.items()}


def test_every_key_of_the_classes_is_in_the_example() -> None:
    raw = tomllib.loads(uncommented())

    def missing(cls: type, table: dict[str, Any], path: str) -> list[str]:
        absent = []
        for key, _, inner, repeated in keys_of(cls):
            if key not in table:
                absent.append(f"{path}{key}")
            elif inner is classes.Certificate:
                # PEM here, PKCS#12 there: never both.
                forms.update(table[key])
            elif inner is not None:
                value = together(table[key]) if repeated else table[key]
                absent += missing(inner, value, f"{path}{key}.")
        return absent

    forms: set[str] = set()
    assert missing(Config, raw, "") == []
    assert forms == {"certificate", "key", "pkcs12", "password_file"}


def test_defaults_named_in_the_example_are_those_of_the_code() -> None:
    """A commented key shows its default; when there is none, any good value."""
    raw = tomllib.loads(uncommented())
    shown = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    compared = []

    def compare(cls: type, table: dict[str, Any], given: dict[str, Any], path: str, defaults: Any) -> None:
        for key, field, inner, repeated in keys_of(cls):
            if inner is not None:
                value, plain = table[key], given.get(key, {})
                if repeated:
                    value, plain = together(value), together(plain or [])
                if field.default not in (None, ()) or key in given:
                    compare(inner, value, plain, f"{path}{key}.", field.default)
                continue
            default = getattr(defaults, field.name) if attrs.has(type(defaults)) else field.default
            if key in given or default is None or default is attrs.NOTHING:
                assert key in given or default is None, f"{path}{key} is required: write it plainly"
                continue
            assert RULES[cls][key].read(table[key]) == default, f"{path}{key}"
            compared.append(key)

    compare(Config, raw, shown, "", None)
    assert len(compared) > 60


def test_example_with_every_comment_removed_is_still_good(tmp_path: Path) -> None:
    text = uncommented().replace('"/var/log/drimbox/drimbox.log"', f'"{tmp_path}/drimbox.log"')
    assert errors_of(example_files(tmp_path, text)) == {}


def test_every_plain_key_has_a_rule_and_every_rule_a_key() -> None:
    def walk(cls: type) -> dict[type, set[str]]:
        found: dict[type, set[str]] = {cls: {key for key, _, inner, _ in keys_of(cls) if inner is None}}
        for _, _, inner, _ in keys_of(cls):
            found |= walk(inner) if inner else {}
        return found

    expected = {cls: keys for cls, keys in walk(Config).items() if keys}
    assert {cls: set(rules) for cls, rules in RULES.items()} == expected


def test_every_default_obeys_its_rule() -> None:
    for cls, rules in RULES.items():
        for field in attrs.fields(cls):
            if field.name in rules and field.default is not attrs.NOTHING and field.default is not None:
                value = list(field.default) if isinstance(field.default, tuple) else field.default
                assert rules[field.name].read(value) == field.default, f"{cls.__name__}.{field.name}"


def test_reference_document_is_up_to_date_and_explains_every_key() -> None:
    """To mend: python -m drimbox.configfile.reference etc/drimbox.toml > docs/configuration.md"""
    produced = reference.document(EXAMPLE.read_text(encoding="utf-8"))
    assert [line for line in produced.splitlines() if line.endswith("|  |")] == []
    assert (EXAMPLE.parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8") == produced


# --- sites, RIS, PACS -------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.05")
def test_settings_of_a_pacs_can_be_changed(tmp_path: Path) -> None:
    path = good_config(tmp_path, ae_title='"NEWPACS"', host='"pacs.chu.fr"', port="11113")
    pacs = load(path).sites[0].pacs
    assert (pacs.ae_title, pacs.host, pacs.port) == ("NEWPACS", "pacs.chu.fr", 11113)


@pytest.mark.requirement("DB.SO.121")
def test_associations_to_a_pacs_are_limited_by_configuration(tmp_path: Path) -> None:
    assert load(good_config(tmp_path, extra="max_associations = 5\n")).sites[0].pacs.max_associations == 5
    assert errors_of(good_config(tmp_path, extra="max_associations = 0\n")) == {
        "site[0].pacs.max_associations": "0 n'est pas de 1 à 1024"
    }


@pytest.mark.requirement("DB.SO.04")
def test_a_ris_is_found_by_application_facility_and_address(tmp_path: Path) -> None:
    extra = """
[[ris]]
name = "second"
sending_application = "XPLORE"
sending_facility = "CHU"
addresses = ["10.0.0.0/8", "2001:db8::1"]
"""
    second = load(good_config(tmp_path, extra=extra)).ris[1]
    assert second == classes.Ris("second", "XPLORE", "CHU", ("10.0.0.0/8", "2001:db8::1"))


def test_domain_names_lose_their_case(tmp_path: Path) -> None:
    path = good_config(tmp_path, wado_fqdn='"DB1.349.MesImagesMedicales.fr"')
    assert load(path).sites[0].wado_fqdn == "db1.349.mesimagesmedicales.fr"


def test_part_of_a_defaulted_section_keeps_the_other_defaults(tmp_path: Path) -> None:
    path = good_config(tmp_path, extra="\n[admin]\nport = 9000\n")
    assert load(path).admin == classes.Listener("127.0.0.1", 9000)


def test_one_mistake_does_not_hide_another(tmp_path: Path) -> None:
    path = good_config(tmp_path, port="0", base_url='"ftp://x"', extra="relational = 'no'\nxx = 1\n")
    (tmp_path / "secret").unlink()
    assert set(errors_of(path)) == {
        "site[0].pacs.port",
        "site[0].pacs.relational",
        "site[0].pacs.xx",
        "dmp.base_url",
        "psc.client_secret_file",
    }


# --- files ------------------------------------------------------------------------------------------


def test_missing_files_are_each_reported_at_their_place(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    for name in ("auth.pem", "sign.key", "roots.pem", "whitelist.xml"):
        (tmp_path / name).unlink()
    found = errors_of(path)
    assert set(found) == {
        "structure[0].authentication.certificate",
        "structure[0].signature.key",
        "trust.consumer_roots",
        "trust.whitelist_roots",
        "trust.whitelist",
        "dmp.roots",
    }
    assert all("fichier introuvable" in problem for problem in found.values())
    assert load(path, files=False).structures[0].name == "CHU"


def test_key_of_another_certificate(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    write_private(tmp_path / "db1.key", pair("autre")[1])
    assert "n'est pas la clé" in errors_of(path)["site[0].wado_certificate.key"]


def test_key_and_certificate_exchanged(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    certificate, key = (tmp_path / "auth.pem").read_bytes(), (tmp_path / "auth.key").read_bytes()
    (tmp_path / "auth.pem").write_bytes(key)
    (tmp_path / "auth.key").write_bytes(certificate)
    found = errors_of(path)
    assert "certificat PEM" in found["structure[0].authentication.certificate"]
    assert "clé privée PEM" in found["structure[0].authentication.key"]


def test_chain_before_certificate_is_told_as_a_wrong_key(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    leaf = (tmp_path / "auth.pem").read_bytes()
    (tmp_path / "auth.pem").write_bytes(pair("intermediaire")[0] + leaf)
    assert "premier certificat" in errors_of(path)["structure[0].authentication.key"]


@pytest.mark.parametrize(
    ("days", "words"),
    [((-30, -2), "expiré"), ((-1, 20), "expire le"), ((2, 30), "valable seulement à partir")],
)
def test_dates_of_a_certificate_are_warnings(tmp_path: Path, days: tuple[int, int], words: str) -> None:
    path = good_config(tmp_path)
    certificate, key = pair("essai", start=days[0], end=days[1])
    (tmp_path / "sign.pem").write_bytes(certificate)
    write_private(tmp_path / "sign.key", key)
    assert errors_of(path) == {}
    assert words in warnings_of(path)["structure[0].signature.certificate"]


def test_expiry_follows_the_clock_given(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    assert warnings_of(path, now=NOW) == {}
    assert "trust.consumer_roots" in warnings_of(path, now=NOW + timedelta(days=400))


def test_certificate_of_another_name_is_a_warning(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    for names, warned in (
        (("db9.349.mesimagesmedicales.fr",), True),
        (("*.349.mesimagesmedicales.fr",), False),
        (("*.mesimagesmedicales.fr",), True),
    ):
        certificate, key = pair(*names)
        (tmp_path / "db1.pem").write_bytes(certificate)
        write_private(tmp_path / "db1.key", key)
        assert ("site[0].wado_certificate.certificate" in warnings_of(path)) is warned, names


def test_der_certificate_is_recognised(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    (tmp_path / "roots.pem").write_bytes(b"\x30\x82\x01\x0a")
    assert "DER" in errors_of(path)["dmp.roots"]


@pytest.mark.requirement("DB.SO.111")
def test_an_authority_that_nobody_has_is_a_warning_and_no_name_an_error(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    good = path.read_text(encoding="utf-8")
    for issuers, where, words in (
        ('["CN=racine"]', None, ""),
        ('["cn= RACINE "]', None, ""),
        ('["CN=autre"]', warnings_of, "aucune autorité"),
        ('["racine"]', errors_of, "n'est pas un nom X.500"),
        ('["CN=racine", "CN=racine"]', errors_of, "deux fois"),
    ):
        path.write_text(good.replace("[trust]\n", f"[trust]\nconsumer_issuers = {issuers}\n"), "utf-8")
        for said in (errors_of, warnings_of):
            found = said(path).get("trust.consumer_issuers", "")
            assert (words in found) if said is where else found == "", (issuers, found)


def test_private_files_open_to_all_are_warnings(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    (tmp_path / "auth.key").chmod(0o644)
    (tmp_path / "secret").chmod(0o644)
    (tmp_path / "state").chmod(0o755)
    assert set(warnings_of(path)) == {
        "structure[0].authentication.key",
        "psc.client_secret_file",
        "drimbox.state_dir",
    }


def test_secret_file_empty_or_of_several_lines(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    write_private(tmp_path / "secret", b" \n")
    assert "est vide" in errors_of(path)["psc.client_secret_file"]
    write_private(tmp_path / "secret", b"un\ndeux\n")
    assert "plusieurs lignes" in errors_of(path)["psc.client_secret_file"]
    write_private(tmp_path / "secret", b"x" * 5000)
    assert "dépasse" in errors_of(path)["psc.client_secret_file"]


def test_start_without_whitelist_makes_its_absence_a_warning(tmp_path: Path) -> None:
    path = good_config(tmp_path, whitelist='"absente.xml"')
    assert "trust.whitelist" in errors_of(path)
    text = path.read_text().replace("[dmp]", "start_without_whitelist = true\n\n[dmp]")
    path.write_text(text)
    assert errors_of(path) == {}
    assert "trust.whitelist" in warnings_of(path)


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    (tmp_path / "roots.pem").unlink()
    os.mkfifo(tmp_path / "roots.pem")
    assert "fichier ordinaire" in errors_of(path)["dmp.roots"]


def test_folders_in_place_of_files(tmp_path: Path) -> None:
    path = good_config(tmp_path, client_secret_file='"state"', extra='\n[log]\nfile = "state"\n')
    found = errors_of(path)
    assert "est un dossier" in found["psc.client_secret_file"]
    assert "est un dossier" in found["log.file"]


def test_check_writes_nothing(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    before = {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")}
    check(path)
    load(path)
    assert {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")} == before


# --- the file itself --------------------------------------------------------------------------------


def test_absent_file_and_folder(tmp_path: Path) -> None:
    assert list(errors_of(tmp_path / "absent.toml").values()) == ["fichier introuvable"]
    assert list(errors_of(tmp_path).values()) == ["est un dossier et non un fichier"]


def test_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes("[drimbox]\nname = 'Hôpital'\n".encode("latin-1"))
    assert errors_of(path) == {"ligne 2": "n'est pas en UTF-8"}


def test_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    path = good_config(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert errors_of(path) == {}


def test_enormous_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    assert list(errors_of(path).values()) == ["dépasse 1 Mio"]


def test_deeply_nested_file_is_refused_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("x = " + "[" * 100_000)
    assert len(errors_of(path)) == 1


@given(st.binary(max_size=300))
def test_any_bytes_give_mistakes_and_never_an_exception(data: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"drimbox-{os.getpid()}.toml"
    try:
        path.write_bytes(data)
        errors, _ = check(path, files=False)
    finally:
        path.unlink(missing_ok=True)
    assert errors


_VALUES = st.sampled_from(
    [
        "1",
        "-1",
        "true",
        '""',
        '"x"',
        "[]",
        "[1]",
        "{}",
        "{ a = 1 }",
        "1.5",
        "nan",
        "2020-01-01",
        '"\\u0000"',
    ]
)


@given(st.sampled_from(sorted(RULES, key=lambda cls: cls.__name__)), st.data())
def test_no_value_of_any_type_breaks_a_rule(cls: type, data: st.DataObject) -> None:
    """A rule answers with a value or `Rejected`, whatever TOML holds."""
    name = data.draw(st.sampled_from(sorted(RULES[cls])))
    value = tomllib.loads(f"x = {data.draw(_VALUES)}")["x"]
    with contextlib.suppress(Rejected):
        RULES[cls][name].read(value)


def test_admin_listener_is_read_from_a_file_that_is_wrong_elsewhere(tmp_path: Path) -> None:
    path = good_config(tmp_path, port="0", extra="\n[admin]\nport = 9100\n")
    (tmp_path / "auth.key").unlink()
    assert admin_listener(path) == classes.Listener("127.0.0.1", 9100)
    path.write_text("[admin]\nport = 0\n")
    with pytest.raises(ConfigErrors, match=r"admin\.port"):
        admin_listener(path)


# --- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (30, 30),
        (0.5, 0.5),
        ("30s", 30),
        ("5min", 300),
        ("2h", 7200),
        ("500ms", 0.5),
        ("1,5 min", 90),
        ("1j", 86400),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert duration(0, 1e9).read(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [True, "30", "s", "1h30", "-1s", "1e3s", "٣s", [], 10**400])
def test_durations_that_are_none(value: object) -> None:
    with pytest.raises(Rejected):
        duration(0, 1e9).read(value)


@pytest.mark.parametrize(
    ("value", "count"),
    [(12, 12), ("12B", 12), ("32MiB", 32 << 20), ("2Gio", 2 << 30), ("1.5KiB", 1536), ("7 o", 7)],
)
def test_sizes(value: object, count: int) -> None:
    assert size(0, 1 << 40).read(value) == count


@pytest.mark.parametrize("value", [1.5, True, "32MB", "32", "MiB", "-1KiB", "9" * 400 + "TiB"])
def test_sizes_that_are_none(value: object) -> None:
    with pytest.raises(Rejected):
        size(0, 1 << 40).read(value)


@pytest.mark.parametrize(
    "value",
    [
        "https://dmp.fr:99999",
        "https://dmp.fr:0",
        "https://",
        "https://dmp fr/",
        "https://dmp.fr\\@pirate.fr/",
        "https://dmp.fr/#x",
        "https://[::1",
        "//dmp.fr/",
        "dmp.fr",
    ],
)
def test_urls_that_are_none(value: str) -> None:
    with pytest.raises(Rejected):
        https_url().read(value)


def test_a_password_never_appears_in_a_message() -> None:
    for rule in (https_url(), RULES[classes.StoreSettings]["url"]):
        for value in ("https://u:s3cret@h/", "postgresql+psycopg://u:s3cret@h/b", "sqlite://u:s3cret@/x"):
            with pytest.raises(Rejected) as caught:
                rule.read(value)
            if "mot de passe" in caught.value.problem:
                assert "s3cret" not in caught.value.problem + caught.value.mend


def test_base_url_loses_its_last_slash() -> None:
    assert https_url(base=True).read("https://dmp.fr/") == "https://dmp.fr"


def test_list_says_which_element_is_wrong() -> None:
    with pytest.raises(Rejected, match="élément 2"):
        several(pattern("[a-z]", "une lettre", "a")).read(["a", "B"])
