"""The commands as typed: what they print, what they write, how they exit."""

import csv
import json
import os
from pathlib import Path

import pydicom
import pytest

from dicomnode.cli.analyze import read_regular_file
from dicomnode.domain.errors import UnreadableObject
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
    for expected in ("body-part", "unreadable", "1 of 2 studies analysed, 1 files unreadable, 0 duplicates"):
        assert expected in done.stdout
    reports, heatmaps = (list((tmp_path / "out").glob(f"*/{name}.dcm")) for name in ("report", "heatmap"))
    assert [pydicom.dcmread(path).Modality for path in (*reports, *heatmaps)] == ["SR", "OT"]
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/summary.json")]
    assert sorted(len(summary["images"]) for summary in summaries) == [0, 1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "frontal",
        "hand",
        "summary.csv",
        "summary.json",
    ]
    assert sorted(one["folder"] for one in json.loads((tmp_path / "out" / "summary.json").read_text())) == [
        "frontal",
        "hand",
    ]
    table = csv.DictReader((tmp_path / "out" / "summary.csv").read_text().splitlines())
    rows = {Path(row["file"]).name: row for row in table}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "frontal.dcm": "analysed",
        "hand.dcm": "body-part",
        "notes.txt": "unreadable",
    }
    assert 0 <= float(rows["frontal.dcm"]["Abnormal_probability"]) <= 1
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "results in" not in line)


def test_analyze_prints_nothing_of_the_patient(bundle: str, files: Path, tmp_path: Path) -> None:
    done = run_cxrnode("analyze", str(files), "--bundle", bundle, "--out", str(tmp_path / "out"))
    names = [str(path) for path in (tmp_path / "out").rglob("*")]
    summaries = [path.read_text() for path in (tmp_path / "out").glob("*/summary.json")]
    for canary in CANARIES:
        assert not [text for text in (done.stdout, done.stderr, *names, *summaries) if canary in text]


def test_analyze_fails_when_nothing_was_analysed(bundle: str, files: Path, tmp_path: Path) -> None:
    (files / "frontal.dcm").unlink()
    done = run_cxrnode("analyze", str(files), "--bundle", bundle, "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "0 of 1 studies analysed" in done.stdout


def test_analyze_reads_no_device_and_no_pipe(bundle: str, files: Path, tmp_path: Path) -> None:
    os.mkfifo(files / "pipe.dcm")
    (files / "zero.dcm").symlink_to("/dev/zero")
    done = run_cxrnode("analyze", str(files), "--bundle", bundle, "--out", str(tmp_path / "out"), "--png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "frontal" / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    for named in (files / "pipe.dcm", files / "zero.dcm", Path("/dev/zero")):
        done = run_cxrnode("analyze", str(named), "--bundle", bundle, "--out", str(tmp_path / "out"))
        assert done.returncode == 2
        assert "is a device or a pipe" in done.stderr


def test_analyze_does_not_take_its_own_results_for_files(bundle: str, files: Path) -> None:
    words = ("analyze", str(files), "--bundle", bundle, "--out", str(files / "out"))
    assert run_cxrnode(*words).stdout == run_cxrnode(*words).stdout


def test_a_file_is_read_up_to_a_size_and_only_if_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(UnreadableObject, match="larger than 4 B"):
        read_regular_file(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UnreadableObject, match="device or a pipe"):
            read_regular_file(path, 5)


def test_analyze_takes_a_copy_of_an_instance_once(bundle: str, files: Path, tmp_path: Path) -> None:
    (files / "copy.dcm").write_bytes((files / "frontal.dcm").read_bytes())
    done = run_cxrnode("analyze", str(files), "--bundle", bundle, "--out", str(tmp_path / "out"))
    assert "frontal.dcm  duplicate\n    holds the same SOP instance as " in done.stdout
    assert "0 unreadable" not in done.stdout
    assert "1 duplicates" in done.stdout


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
