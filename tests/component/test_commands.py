"""The commands as typed: what they print, what they write, how they exit."""

import json
from pathlib import Path

import pydicom
import pytest

from tests.support.archives import Archive
from tests.support.bundles import make_bundle
from tests.support.make import CANARIES, build, write
from tests.support.processes import free_port, run_cxrnode


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    write(build("dx", seed=1), folder / "frontal.dcm")
    write(build("cr", seed=2, body_part="HAND"), folder / "hand.dcm")
    (folder / "notes.txt").write_text("not DICOM")
    return folder


def test_analyze_answers_each_study_and_says_why_not(bundle: str, files: Path, tmp_path: Path) -> None:
    done = run_cxrnode("analyze", str(files), "--bundle", bundle, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    for expected in ("body-part", "unreadable", "1 of 2 studies analysed, 1 files unreadable"):
        assert expected in done.stdout
    reports, heatmaps = (list((tmp_path / "out").glob(f"*/{name}.dcm")) for name in ("report", "heatmap"))
    assert [pydicom.dcmread(path).Modality for path in (*reports, *heatmaps)] == ["SR", "OT"]
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/summary.json")]
    assert sorted(len(summary["images"]) for summary in summaries) == [0, 1]


def test_analyze_prints_nothing_of_the_patient(bundle: str, files: Path, tmp_path: Path) -> None:
    done = run_cxrnode("analyze", str(files), "--bundle", bundle, "--out", str(tmp_path / "out"))
    names = [str(path) for path in (tmp_path / "out").rglob("*")]
    summaries = [path.read_text() for path in (tmp_path / "out").glob("*/summary.json")]
    for canary in CANARIES:
        assert not [text for text in (done.stdout, done.stderr, *names, *summaries) if canary in text]


def test_analyze_takes_a_copy_of_an_instance_once(bundle: str, files: Path, tmp_path: Path) -> None:
    (files / "copy.dcm").write_bytes((files / "frontal.dcm").read_bytes())
    done = run_cxrnode("analyze", str(files), "--bundle", bundle, "--out", str(tmp_path / "out"))
    assert "another file holds the same SOP instance" in " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("analyze", "absent.dcm"), "there is no file or folder absent.dcm"),
        (("analyze", ".", "--bundle", "absent"), "there is no bundle folder at absent"),
        (("serve", "--config", "absent.toml"), "there is no configuration file absent.toml"),
        (("serve", "--port", "70000"), "scp.port"),
        (("serve", "--ae-title", "SEVENTEEN_LETTERS"), "scp.ae_title"),
        (("send", "nonsense", "."), "is not of the form AET@HOST:PORT"),
        (("why", "not-a-uid", "--store", "absent"), "there is no store at absent"),
    ],
)
def test_a_mistake_is_said_and_ends_with_2(words: tuple[str, ...], said: str) -> None:
    done = run_cxrnode(*words)
    assert done.returncode == 2
    assert said in done.stderr


def test_echo_says_what_is_wrong() -> None:
    peer = f"NOBODY@127.0.0.1:{free_port()}"
    done = run_cxrnode("echo", peer)
    assert done.returncode == 1
    assert "nothing listens there" in done.stderr


def test_send_names_what_it_skipped(files: Path) -> None:
    with Archive() as archive:
        done = run_cxrnode("send", archive.peer, str(files))
        assert run_cxrnode("echo", archive.peer).returncode == 0
    assert done.returncode == 0
    assert "notes.txt: skipped" in done.stdout
    assert len(archive.sent) == 2
