"""What the command line says when something is wrong: the fact, and what to do next."""

import re
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicomnode import __version__
from dicomnode.cli.check import _check_port
from dicomnode.cli.main import app
from dicomnode.cli.terminal import stop_with
from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings.node import AssemblySettings, StoreSettings, parse_destination, read_settings
from dicomnode.store import Store


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[scp]\nprot = 3\n", "scp.prot: there is no such setting; did you mean port?"),
        ("[spc]\nport = 3\n", "spc: there is no such setting; did you mean scp?"),
        (
            "[scp.tls]\ncertifcate = 'c.pem'\n",
            "scp.tls.certifcate: there is no such setting; did you mean certificate",
        ),
        ("[scp]\nqqqqqqqqqqqqq = 3\n", "scp.qqqqqqqqqqqqq: there is no such setting; conf/node.toml lists them all"),
        ("[scp]\nport = 70000\n", "scp.port: must be at most 65535"),
        ("[scp\n", "cannot be read"),
    ],
)
def test_a_wrong_configuration_is_told_with_the_nearest_right_one(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        read_settings(file, {})
    assert said in str(raised.value)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CXRNODE_SCP__PORT", "high", "scp.port: must be a whole number"),
        ("cxrnode_scp__port", "0", "scp.port: must be at least 1"),
        ("CXRNODE_SCP__PROT", "3", "scp.prot: there is no such setting; did you mean port?"),
        ("CXRNODE_SPC__PORT", "3", "spc: there is no such setting; did you mean scp?"),
        ("CXRNODE_SCP", "3", "scp: must be a section with settings of its own"),
        ("CXRNODE_SCP__TLS__KEY", "/k", "scp.tls: TLS needs a certificate"),
        ("CXRNODE_ELIGIBILITY__MODALITIES", "CR", "cannot be read as JSON"),
    ],
)
def test_a_wrong_variable_of_the_environment_is_blamed_and_not_the_file(
    variable: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[scp]\nport = 11113\n")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as raised:
        read_settings(file, {})
    assert said in str(raised.value)
    assert variable in str(raised.value)
    assert str(file) not in str(raised.value)


def test_a_variable_that_only_looks_a_little_like_a_setting_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRNODE_WARD_TOKEN", "0123456789abcdef")
    assert read_settings(None, {}).scp.port == 11112


def test_a_wrong_option_is_blamed_and_not_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRNODE_SCP__PORT", "11113")
    with pytest.raises(ConfigurationError, match=r"at most 65535 \(option of the command line\)"):
        read_settings(None, {"scp": {"port": 70000}})


WRONG_VALUES = """
[scp]
require_called_ae = 4
networks = 3
maximum_pdu_bytes = 4.5
[store]
path = 3
[pixels]
low_percentile = 50
high_percentile = nan
[inference]
providers = []
[log]
level = "LOUD"
[http]
proxy_user_header = "a b"
[results]
station_name = "longer than sixteen characters"
manufacturer = ""
[audit]
to = "file"
[[delivery.destinations]]
kind = "smtp"
[[delivery.destinations]]
ae_title = "A"
host = "h"
"""


def test_what_is_wrong_is_told_in_the_nodes_own_sentences(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(WRONG_VALUES)
    with pytest.raises(ConfigurationError) as raised:
        read_settings(file, {})
    _, *lines = str(raised.value).splitlines()
    assert len(lines) == 14
    for line in lines:
        assert not re.search(r"Input should|Value error|valid|String|List|Field required|pydantic", line), line
        assert "is not a value that can stand here" not in line


def test_a_configuration_that_is_not_there_can_be_written() -> None:
    with pytest.raises(ConfigurationError, match=r"cxrnode init absent\.toml"):
        read_settings(Path("absent.toml"), {})


def test_a_configuration_that_may_not_be_read_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "node.toml"
    file.write_text("")

    def refuse(*_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigurationError, match="Permission denied; who runs cxrnode needs to"):
        read_settings(file, {})


def test_a_peer_that_is_none_is_shown_one() -> None:
    with pytest.raises(ConfigurationError, match=r"such as PACS@pacs\.example\.org:104"):
        parse_destination("PACS")


def test_a_port_that_is_taken_is_told_with_how_to_find_by_whom() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match=r"already in use.*ss -ltnp.*scp\.port"):
            _check_port("127.0.0.1", taken.getsockname()[1])


def test_a_store_that_cannot_be_made_is_told_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"store\.path"):
        Store.open(StoreSettings(path=tmp_path / "file" / "store"), AssemblySettings(), exclusive=True)


def test_an_error_of_several_lines_is_printed_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stop_with("the configuration is wrong:\n  scp.port: too large\n  a \x1b[31mcolour", 2)
    assert capsys.readouterr().err.splitlines()[:2] == ["error: the configuration is wrong:", "  scp.port: too large"]


def test_help_lists_every_command_in_a_group_and_the_version_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = CliRunner().invoke(app, ["-h"])
    assert told.exit_code == 0
    groups = re.findall(r"^╭─ (\w+) ─", told.output, flags=re.MULTILINE)
    assert groups == ["Options", "Run", "Look", "Repair", "Model", "Data"]
    for command in ("serve", "status", "monitoring", "queue", "train", "data"):
        assert re.search(rf"^│ {command} +[A-Z]", told.output, flags=re.MULTILINE), command
    assert "watch" not in told.output
    assert "Examples: " in told.output
    assert CliRunner().invoke(app, ["queue", "retry", "-h"]).output.count("Usage") == 1
    assert CliRunner().invoke(app, ["--version"]).output == f"cxrnode {__version__}\n"


def test_the_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_CXRNODE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "cxrnode se")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        app(prog_name="cxrnode")
    assert capsys.readouterr().out.split() == ["serve", "send"]
