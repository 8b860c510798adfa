"""`cxrnode init`: checked answers become a configuration that the node reads, with every comment of the reference."""

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dicomnode.cli.init import Answers, configuration, reference
from dicomnode.cli.main import app
from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings.node import Settings, parse_destination, read_settings
from tests.conftest import ROOT
from tests.support.certificates import Authority

FIVE = ("--ae-title", "AI_NODE", "--port", "11200", "--pacs", "PACS@pacs.example.org:104", "--store", "/srv/cxr")


def run(*words: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, ["init", *words], input=typed)


def settings_in(file: Path) -> dict[str, object]:
    return read_settings(file, {}).model_dump()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_word_it_writes_the_defaults_and_all_the_comments() -> None:
    assert run("--yes").exit_code == 0
    file = Path("node.toml")
    assert settings_in(file) == Settings().model_dump()
    shipped = (ROOT / "conf" / "node.toml").read_text().splitlines()
    assert file.read_text().splitlines()[2:] == shipped[1:]


def test_options_answer_all_questions() -> None:
    result = run("site.toml", *FIVE, "--no-echo", "--yes")
    assert result.exit_code == 0, result.output
    settings = read_settings(Path("site.toml"), {})
    (pacs,) = settings.delivery.destinations
    assert (settings.scp.ae_title, settings.scp.port, settings.store.path) == ("AI_NODE", 11200, Path("/srv/cxr"))
    assert pacs == parse_destination("PACS@pacs.example.org:104")
    assert "cxrnode check --config site.toml" in result.output


def test_nothing_but_the_answers_differs_from_the_reference() -> None:
    run("--yes", "--no-echo", *FIVE)
    written, shipped = Path("node.toml").read_text().splitlines(), reference().splitlines()
    changed = [line for line in written[2:] if line not in shipped]
    assert [line.split(" =")[0] for line in changed if "# this site" in line][:2] == ["ae_title", "port"]
    assert len(changed) == 7
    assert [line for line in shipped if line.startswith("#") and line not in written] == [shipped[0]]


def test_questions_are_asked_again_until_the_answers_are_right() -> None:
    typed = "A TITLE THAT IS TOO LONG\nWARD_AI\n70000\neleven\n11200\npacs.example.org\nPACS@10.0.0.7:104\n\n\n"
    result = run("--no-echo", typed=typed)
    assert result.exit_code == 0, result.output
    for said in ("16 printable ASCII", "65535", "whole number", "AET@HOST:PORT"):
        assert said in result.output
    settings = read_settings(Path("node.toml"), {})
    assert (settings.scp.ae_title, settings.scp.port) == ("WARD_AI", 11200)
    assert settings.delivery.destinations[0].label == "PACS@10.0.0.7:104"
    assert settings.store == Settings().store


def test_a_certificate_is_read_before_it_is_believed(tmp_path: Path) -> None:
    both = Authority(tmp_path).issue("127.0.0.1", tmp_path / "both.pem").read_text()
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    at = both.index("-----BEGIN PRIVATE KEY")
    certificate.write_text(both[:at])
    key.write_text(both[at:])
    assert run("--yes", "--certificate", str(certificate), "--key", str(key)).exit_code == 0
    tls = read_settings(Path("node.toml"), {}).scp.tls
    assert (tls.certificate, tls.key) == (certificate, key)
    for words in (["--certificate", "nowhere.pem"], ["--certificate", str(key)], ["--key", str(key)]):
        result = run("other.toml", "--yes", *words)
        assert isinstance(result.exception, ConfigurationError)
    assert not Path("other.toml").exists()


@pytest.mark.parametrize(
    "words", [["--port", "0"], ["--ae-title", ""], ["--pacs", "PACS"], ["--store", "there.txt"], ["--store", ""]]
)
def test_a_wrong_option_is_refused_and_nothing_written(words: list[str]) -> None:
    Path("there.txt").write_text("")
    result = run("--yes", *words)
    assert isinstance(result.exception, ConfigurationError)
    assert not Path("node.toml").exists()


def test_a_file_that_is_there_stays_unless_forced() -> None:
    Path("node.toml").write_text("precious")
    result = run("--yes")
    assert isinstance(result.exception, ConfigurationError)
    assert "--force" in str(result.exception)
    assert Path("node.toml").read_text() == "precious"
    assert run("--yes", "--force").exit_code == 0
    assert settings_in(Path("node.toml")) == Settings().model_dump()


def test_a_pacs_that_does_not_answer_is_said_and_the_file_written() -> None:
    result = run("--yes", "--pacs", "PACS@127.0.0.1:1")
    assert result.exit_code == 0
    assert "does not answer yet" in result.output
    assert read_settings(Path("node.toml"), {}).delivery.destinations


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a # b", "ä", "a = 1", "]["])
def test_whatever_a_folder_is_called_it_is_read_back(text: str) -> None:
    answers = Answers(ae_title="A", port=1, pacs=None, store=Path("/srv") / text, certificate=None)
    Path("node.toml").write_text(configuration(answers))
    assert read_settings(Path("node.toml"), {}).store.path == Path("/srv") / text


def test_a_file_that_root_writes_can_be_read_by_the_account_of_the_service(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        result = CliRunner().invoke(
            app, ["init", str(tmp_path / "etc" / "cxrnode" / "node.toml"), "--yes", "--no-echo"]
        )
    finally:
        os.umask(before)
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE((tmp_path / "etc" / "cxrnode" / "node.toml").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "etc" / "cxrnode").stat().st_mode) == 0o755
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700, "a folder that was there stays as it was"
