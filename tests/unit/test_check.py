"""`cxrnode check`: it recognises a running node, changes nothing where it is run, and prints readable lines."""

import os
import socket
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicomnode.cli.check import _check_page, _check_port, _check_store
from dicomnode.cli.main import app
from dicomnode.domain.errors import ConfigurationError
from dicomnode.monitoring.health import exposed_to_others
from dicomnode.monitoring.page_address import PageAddress, write_page_address
from dicomnode.monitoring.status import running_node
from dicomnode.settings.node import Settings, StoreSettings
from tests.support.stores import open_store


def test_a_port_is_no_fault_where_the_node_itself_has_it(tmp_path: Path) -> None:
    with open_store(tmp_path / "store"), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = running_node(tmp_path / "store")
        assert f"process {os.getpid()}" in node
        assert _check_port("127.0.0.1", port, node) == (
            f"127.0.0.1:{port} is in use, by the node that runs on this store"
        )
    assert running_node(tmp_path / "store") == ""


def test_the_page_of_a_running_node_is_found_where_the_node_says_it_is(tmp_path: Path) -> None:
    settings = Settings(store=StoreSettings(path=tmp_path / "store"))
    with open_store(tmp_path / "store"):
        write_page_address(tmp_path / "store", PageAddress(port=8123))
        node = running_node(tmp_path / "store")
        assert "serves it on port 8123" in _check_page(settings, node)
        write_page_address(tmp_path / "store", PageAddress(why_not="the address is taken"))
        with pytest.raises(ConfigurationError, match="has no page: the address is taken"):
            _check_page(settings, node)


def test_nothing_is_made_where_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "makes it at its first start" in _check_store(Path("var/store"))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_made_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"store\.path, --store"):
        _check_store(tmp_path / "file" / "store")


@pytest.mark.parametrize(
    ("mode", "is_open"), [(0o700, False), (0o750, False), (0o770, True), (0o755, True), (0o777, True)]
)
def test_a_store_that_other_accounts_may_enter_is_wrong(tmp_path: Path, mode: int, is_open: bool) -> None:
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(mode)
    if is_open:
        with pytest.raises(ConfigurationError, match=f"mode {mode:04o}.*chmod 700"):
            _check_store(store)
    else:
        assert "can be written" in _check_store(store)
    assert bool(exposed_to_others(store)) == is_open
    assert stat.S_IMODE(store.stat().st_mode) == mode, "check changes nothing"


def test_an_error_of_several_lines_is_printed_in_lines(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[scp]\nport = 0\nprot = 1\n")
    told = CliRunner().invoke(app, ["check", "--config", str(file)])
    assert told.exit_code == 1
    lines = told.output.splitlines()
    assert lines[0] == "wrong configuration: the configuration is wrong:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["scp.port", "scp.prot"]
    assert "\N{REPLACEMENT CHARACTER}" not in told.output
