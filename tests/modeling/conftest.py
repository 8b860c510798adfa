"""Drawn training data, small enough for a test and complete enough for every label."""

import shutil
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

for required in ("tensorflow", "tf2onnx", "sklearn"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(required, reason="training's requirements are not installed")

from dicomnode.bundle.phantom import draw_chest  # noqa: E402
from dicomnode.domain.terminology import NIH_TERMS  # noqa: E402
from tests.modeling.nih_release import make_release  # noqa: E402

IMAGES = 60


@pytest.fixture(scope="session")
def drawn_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of 60 drawn chests of 30 patients, in which every label occurs."""
    path = tmp_path_factory.mktemp("archive") / "drawn.zip"
    names, random = list(NIH_TERMS), np.random.default_rng(0)
    rows = ["image,px,source,labels,view,patient,age,sex"]
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(IMAGES):
            pixels = (draw_chest(96, 96, random) * 255).astype(np.uint8)
            archive.writestr(f"images/{index:08d}_000.jpg", cv2.imencode(".jpg", pixels)[1].tobytes())
            findings = {names[index // 2 % 14], names[(index * 5 + 3) % 14]} if index % 2 else {"No Finding"}
            view = "PA" if index % 3 else "AP"
            rows.append(f"{index:08d}_000.png,96,drawn,{'|'.join(sorted(findings))},{view},{index // 2},50,M")
        archive.writestr("manifest.csv", "\n".join(rows))
    return path


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small release as NIH publishes one; whoever damages it takes `own_release`."""
    return make_release(tmp_path_factory.mktemp("release") / "nih")


@pytest.fixture
def own_release(release: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(release, tmp_path / "nih"))
