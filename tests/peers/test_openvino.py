"""OpenVINO in ONNX Runtime's place: what the command says of a radiograph is what it says on the default provider."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.bundle.phantom import draw_chest
from tests.conftest import ROOT
from tests.support import make

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]
RUN_S, SIDE = 240, 512


@pytest.fixture(scope="session")
def openvino() -> Path:
    """Return the folder that holds onnxruntime-openvino, which cannot stand beside the project's ONNX Runtime."""
    folder = Path(os.environ.get("BENCH_OPENVINO", ROOT / "build" / "openvino")).resolve()
    if not (folder / "onnxruntime").is_dir():
        pytest.skip("not installed: pip install --no-deps --target build/openvino onnxruntime-openvino")
    return folder


def analysed(folder: Path, provider: str, first: Path | None) -> dict[str, float]:
    """Return every finding's probability, of one drawn chest, by the command in a process of its own."""
    folder.mkdir()
    chest = make.stored(draw_chest(SIDE, SIDE, np.random.default_rng(1)))
    (folder / "image.dcm").write_bytes(make.encode(make.build("cr", pixels=chest), str(ExplicitVRLittleEndian)))
    (folder / "node.toml").write_text(f"[inference]\nproviders = ['{provider}']\n")
    path = os.pathsep.join([*([str(first)] if first else []), str(ROOT), os.environ.get("PYTHONPATH", "")])
    words = ("--config", folder / "node.toml", "--out", folder / "out")
    ended = subprocess.run(
        [sys.executable, "-m", "dicomnode", "analyze", folder / "image.dcm", *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (summary,) = (folder / "out").glob("*/summary.json")
    return probabilities(json.loads(summary.read_text()))


def probabilities(summary: object) -> dict[str, float]:
    """Return what the summary holds of findings, however deep."""
    held: dict[str, float] = {}
    if isinstance(summary, dict):
        if "probability" in summary:
            held[str(summary.get("label"))] = float(summary["probability"])
        for value in summary.values():
            held |= probabilities(value)
    if isinstance(summary, list):
        for value in summary:
            held |= probabilities(value)
    return held


def test_openvino_finds_what_the_default_provider_finds(openvino: Path, tmp_path: Path) -> None:
    expected = analysed(tmp_path / "cpu", "cpu", None)
    assert len(expected) == 15
    assert analysed(tmp_path / "openvino", "openvino", openvino) == pytest.approx(expected, abs=1e-4)
