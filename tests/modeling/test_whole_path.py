"""From NIH's release to an answer in the PACS, by the commands a researcher types."""

import csv
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicomnode.bundle.phantom import draw_chest
from dicomnode.bundle.reader import open_bundle
from tests.modeling.nih_release import make_release
from tests.support.archives import Archive
from tests.support.make import build, stored, write
from tests.support.processes import NodeProcess, free_port, wait_until

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

SMOKE = Path(__file__).parents[2] / "conf" / "train" / "smoke.toml"
TRAIN_S = 400.0


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_release(tmp_path_factory.mktemp("nih"), patients=120)
    random = np.random.default_rng(0)
    for path in sorted((folder / "images").iterdir()):
        cv2.imwrite(str(path), (draw_chest(96, 96, random) * 255).astype(np.uint8))
    return folder


def test_a_release_becomes_a_model_that_answers_a_study(release: Path, tmp_path: Path) -> None:
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    table = release / "Data_Entry_2017.csv"
    cxrnode("data", "prepare", "--images", release / "images", "--labels", table, "--official-split", release,
            "--out", prepared, "--folds", 2, "--side", 64)  # fmt: skip
    train = ("train", "--config", SMOKE, "--images", prepared, "--out", run)
    kill_after_first_epoch(train, run)
    first = epochs(run)
    cxrnode(*train)
    assert [row for row in epochs(run) if row in first] == first
    assert sorted((row["fold"], row["epoch"]) for row in epochs(run)) == [
        ("0", "1"),
        ("0", "2"),
        ("1", "1"),
        ("1", "2"),
    ]
    for name in ("model.txt", "history.json", "learning-curves.png", "predictions.csv", "bundle/MODEL_CARD.md"):
        assert (run / name).stat().st_size

    bundle = tmp_path / "exported"
    cxrnode("export", run, "--out", bundle)
    assert open_bundle(bundle).manifest.labels == open_bundle(run / "bundle").manifest.labels

    cxrnode("evaluate", "--bundle", bundle, "--images", release / "images", "--labels", table,
            "--split", release / "test_list.txt", "--out", tmp_path / "evaluation")  # fmt: skip
    with (tmp_path / "evaluation" / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len((release / "test_list.txt").read_text().split())

    serve_one_study(bundle, tmp_path)


def serve_one_study(bundle: Path, tmp_path: Path) -> None:
    """Check that the node takes the bundle and gives a chest its two results."""
    with Archive() as archive:
        node = NodeProcess(tmp_path / "node", port=free_port(), bundle=bundle, send_to=[archive.peer]).start()
        try:
            source = build("dx", pixels=stored(draw_chest(640, 640, np.random.default_rng(3))))
            write(source, tmp_path / "chest.dcm")
            cxrnode("send", f"CXRNODE@127.0.0.1:{node.port}", tmp_path / "chest.dcm")
            wait_until(lambda: len(archive.sent) == 2, 60, "an answer")
        finally:
            node.close()
    assert {kind: len(held) for kind, held in archive.of_study(str(source.StudyInstanceUID)).items()} == {
        "OT": 1,
        "SR": 1,
    }


def kill_after_first_epoch(train: tuple[object, ...], run: Path) -> None:
    """Start a training and end it by SIGKILL once its first epoch is stored."""
    process = subprocess.Popen(command(*train), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until((run / "history.csv").exists, TRAIN_S, "a first epoch")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def epochs(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def cxrnode(*arguments: object) -> None:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=TRAIN_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dicomnode", *map(str, arguments)]
