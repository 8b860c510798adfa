"""One configuration: options over environment over file over defaults, and every mistake named."""

import re
import tomllib
from pathlib import Path

import pytest

from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings import Settings, parse_destination, read_settings
from tests.conftest import ROOT


def written(folder: Path, text: str) -> Path:
    file = folder / "node.toml"
    file.write_text(text)
    return file


def test_options_override_environment_which_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, '[scp]\nport = 1001\nae_title = "FILE"\nbind = "127.0.0.1"\n')
    monkeypatch.setenv("CXRNODE_SCP__PORT", "1002")
    monkeypatch.setenv("CXRNODE_SCP__AE_TITLE", "ENVIRONMENT")
    settings = read_settings(file, {"scp": {"port": 1003}})
    assert (settings.scp.port, settings.scp.ae_title, settings.scp.bind) == (1003, "ENVIRONMENT", "127.0.0.1")


def test_the_shipped_file_holds_the_defaults() -> None:
    assert read_settings(ROOT / "conf" / "node.toml", {}).model_dump() == Settings().model_dump()


def test_the_shipped_file_names_every_setting() -> None:
    text = (ROOT / "conf" / "node.toml").read_text()
    named = tomllib.loads(re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE))
    for section, field in Settings.model_fields.items():
        assert set(named[section]) == set(type(field.default).model_fields) - {"destinations"}, section


def test_a_misspelt_key_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "[scp]\nprot = 1\n")
    with pytest.raises(ConfigurationError, match=r"scp\.prot"):
        read_settings(file, {})


def test_broken_toml_is_said_to_be_broken(tmp_path: Path) -> None:
    file = written(tmp_path, "[scp\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings(file, {})


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no configuration file"):
        read_settings(tmp_path / "absent.toml", {})


@pytest.mark.parametrize("title", ["", " ", "SEVENTEEN_LETTERS", "back\\slash", "tab\t"])
def test_an_impossible_ae_title_is_refused(title: str) -> None:
    with pytest.raises(ConfigurationError, match="AE title"):
        read_settings(None, {"scp": {"ae_title": title}})


@pytest.mark.parametrize(
    ("text", "host"),
    [("PACS@localhost:104", "localhost"), ("MY PACS@[::1]:11112", "::1"), ("A@10.0.0.1:1", "10.0.0.1")],
)
def test_a_destination_is_read(text: str, host: str) -> None:
    assert parse_destination(text).host == host


@pytest.mark.parametrize("text", ["PACS", "PACS@host", "PACS@host:0", "PACS@host:99999", "@host:104", "PACS@:104"])
def test_a_malformed_destination_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_destination(text)


def test_two_destinations_of_one_name_are_refused() -> None:
    twice = {"destinations": [parse_destination("PACS@host:104").model_dump()] * 2}
    with pytest.raises(ConfigurationError, match="same name"):
        read_settings(None, {"delivery": twice})
