"""`cxrnode explain`: one overlay per finding, from pictures and from DICOM objects."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dicomnode.cli.main import app
from dicomnode.domain.errors import ConfigurationError
from tests.support.bundles import make_bundle
from tests.support.make import CANARIES, build, chest, write


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    make_bundle(root / "bundle")
    cv2.imwrite(str(root / "chest.png"), np.round(chest() * 255).astype(np.uint8))
    write(build("cr"), root / "chest.dcm")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return root


def run(images: Path, out: Path, *arguments: str, bundle: str = "bundle") -> Result:
    return CliRunner().invoke(app, ["explain", "--bundle", str(images / bundle), "--out", str(out), *arguments])


def test_a_picture_and_a_dicom_object_of_one_name_keep_apart(images: Path, tmp_path: Path) -> None:
    result = run(images, tmp_path, str(images / "chest.png"), str(images / "chest.dcm"), "--finding", "Mass")
    assert result.exit_code == 0, result.output
    first, second = (cv2.imread(str(tmp_path / name / "Mass.png")) for name in ("chest", "chest-2"))
    assert first is not None
    assert second is not None
    assert not any(canary in result.output for canary in CANARIES)


def test_findings_present_are_drawn_without_being_asked_for(images: Path, tmp_path: Path) -> None:
    result = run(images, tmp_path, str(images / "chest.png"))
    assert result.exit_code == 0, result.output
    drawn = {path.stem for path in (tmp_path / "chest").iterdir()}
    said = {line.split()[1] for line in result.output.splitlines() if line.startswith("chest.png:")}
    assert drawn == said
    assert drawn
    assert "absent" not in result.output


def test_all_means_every_output_each_with_its_own_map(images: Path, tmp_path: Path) -> None:
    result = run(images, tmp_path, str(images / "chest.png"), "--finding", "all")
    assert result.exit_code == 0, result.output
    pictures = {path.stem: cv2.imread(str(path)) for path in (tmp_path / "chest").glob("*.png")}
    assert len(pictures) == 15
    assert not np.array_equal(pictures["Mass"], pictures["Nodule"])


def test_an_unknown_finding_is_an_error_that_names_those_there_are(images: Path, tmp_path: Path) -> None:
    result = run(images, tmp_path, str(images / "chest.png"), "--finding", "Fracture")
    assert isinstance(result.exception, ConfigurationError)
    assert "Hernia" in str(result.exception)


def test_an_unreadable_image_is_named_the_others_are_explained_and_the_command_fails(
    images: Path, tmp_path: Path
) -> None:
    result = run(images, tmp_path, str(images / "broken.jpg"), str(images / "gone.png"), str(images / "chest.png"))
    assert result.exit_code == 1
    assert "broken.jpg: not explained" in result.output
    assert "gone.png: not explained" in result.output
    assert "1 of 3 images explained" in result.output
    assert (tmp_path / "chest").is_dir()


def test_an_image_the_node_would_reject_is_explained_with_a_warning(images: Path, tmp_path: Path) -> None:
    make_bundle(images / "strict", typicality_threshold=-1.0)
    result = run(images, tmp_path, str(images / "chest.png"), "--finding", "Mass", bundle="strict")
    assert result.exit_code == 0, result.output
    assert "would not analyse this image: it seems atypical" in result.output
