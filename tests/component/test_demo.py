"""`cxrnode demo`: what a newcomer runs first, as a process of its own."""

import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from pydicom import dcmread

from dicomnode.demo.chest import write_studies
from dicomnode.demo.reading import findings_in, picture_of
from dicomnode.net.scp.archive import Archive
from dicomnode.net.scu.storage import echo
from dicomnode.node import utc_now
from dicomnode.settings.node import Settings, parse_destination
from tests.support.processes import wait_until


def demo(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dicomnode", "demo", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole demonstration that was kept, and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    run = demo("--once", "--out", "kept", cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr.strip() == ""
    return folder / "kept", run.stdout


def test_every_frontal_chest_has_its_report_and_its_heatmap_and_the_lateral_neither(kept: tuple[Path, str]) -> None:
    folder, said = kept
    sent = {dcmread(file).StudyInstanceUID: dcmread(file) for file in (folder / "sent").iterdir()}
    assert sorted(ds.ViewPosition for ds in sent.values()) == ["AP", "LL", "PA", "PA"]
    answered = {}
    for study in (folder / "archive").iterdir():
        modalities = sorted(dcmread(file).Modality for file in study.glob("*.dcm"))
        (uid,) = {dcmread(file).StudyInstanceUID for file in study.glob("*.dcm")}
        answered[uid] = modalities
    assert {sent[uid].ViewPosition for uid in answered} == {"AP", "PA"}
    assert list(answered.values()) == [["OT", "SR"]] * 3
    assert "lateral-view" in said


def test_what_is_said_of_findings_is_what_the_report_says(kept: tuple[Path, str]) -> None:
    folder, said = kept
    reports = list((folder / "archive").rglob("SR-*.dcm"))
    assert len(reports) == 3
    for report in reports:
        findings = findings_in(report)
        assert len(findings) == 15
        (abnormal,) = (finding for finding in findings if finding.label == "Abnormal")
        assert f"{abnormal.probability:.2f}" in said
        assert picture_of(report) is None


def test_the_heatmap_is_a_picture_and_the_files_named_are_there(kept: tuple[Path, str]) -> None:
    folder, said = kept
    named = [folder.parent / name for name in re.findall(r"kept/archive/\S+", said)]
    assert len(named) == 9
    assert all(file.is_file() for file in named)
    pictures = [file for file in named if file.suffix == ".png"]
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.mode == "RGB"
            assert min(image.size) > 500
            assert len(image.resize((40, 40)).getcolors(1600)) > 100


def test_nothing_but_what_was_asked_for_stays(kept: tuple[Path, str]) -> None:
    folder, _ = kept
    assert {entry.name for entry in folder.iterdir()} == {"sent", "archive"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["kept"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A demonstration of one given file that stays, and the lines it says."""
    given = write_studies(tmp_path / "drawn", utc_now())[0]
    command = [sys.executable, "-m", "dicomnode", "demo", "--no-browser", str(given)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
    reader.start()
    yield process, lines
    process.kill()
    process.wait()
    reader.join()
    process.stdout.close()  # type: ignore[union-attr]


def test_it_stays_with_its_page_until_it_is_interrupted(running: tuple[subprocess.Popen[str], list[str]]) -> None:
    process, lines = running
    wait_until(lambda: "Ctrl-C" in "".join(lines) or process.poll() is not None, 240, "the end of the first study")
    said = "".join(lines)
    assert "1 of 1 files" in said
    (page,) = re.findall(r"http://127\.0\.0\.1:\d+/studies/[0-9.]+", said)
    with urllib.request.urlopen(page, timeout=60) as answer:
        assert answer.status == 200
        assert "<h2>Findings</h2>" in answer.read().decode()
    (peer,) = set(re.findall(r"CXRNODE@127\.0\.0\.1:\d+", said))
    destination = parse_destination(peer).destination()
    assert echo(destination, calling_ae="ANYBODY", settings=Settings().delivery).succeeded
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 0


@pytest.mark.parametrize("words", [["--out", "file/below"], ["--bundle", "nowhere"]])
def test_what_cannot_be_done_is_said_with_what_to_do(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = demo("--once", *words, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert "Traceback" not in run.stderr


def test_files_that_are_no_images_end_it_with_a_failure(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("no image")
    run = demo("--once", "letter.txt", cwd=tmp_path)
    assert run.returncode == 1
    assert "letter.txt was not sent" in run.stdout


def test_the_archive_names_no_file_after_what_a_peer_sends(tmp_path: Path) -> None:
    with Archive(tmp_path / "kept") as archive:
        assert echo(
            parse_destination(archive.peer).destination(), calling_ae="A", settings=Settings().delivery
        ).succeeded
        assert archive.port > 0
    assert list((tmp_path / "kept").iterdir()) == []
