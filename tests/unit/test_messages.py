"""What the command line says when something is wrong: the fact, and what to do next."""

import socket
from pathlib import Path

import pytest

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
        ("[scp]\nport = 70000\n", "less than or equal to 65535"),
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


def test_the_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_CXRNODE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "cxrnode se")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        app(prog_name="cxrnode")
    assert capsys.readouterr().out.split() == ["serve", "send"]
