"""The chests that the demo draws: objects a validator would take, images the shipped model's gate lets pass."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicomnode.bundle.phantom import draw_chest
from dicomnode.bundle.reader import open_bundle
from dicomnode.demo.chest import write_studies
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import Frame
from dicomnode.inference.gate import Typical, judge_pixels
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.node import default_bundle
from tests.support.make import build, ref_of

NOW = datetime(2024, 5, 1, 10, 15, tzinfo=UTC)


def test_the_shipped_model_takes_every_drawing_for_a_frontal_chest_and_noise_for_none() -> None:
    bundle = open_bundle(default_bundle())
    predictor = Predictor(bundle, threads=1)

    def verdict(pixels: np.ndarray) -> object:
        pixels.setflags(write=False)
        return judge_pixels(predictor.read(Frame(source=ref_of(build("cr")), pixels=pixels)), bundle.manifest.gate)

    for seed in range(6):
        assert isinstance(verdict(draw_chest(512, 512, np.random.default_rng(seed))), Typical), seed
    noise = np.random.default_rng(0).uniform(0, 1, (512, 512)).astype(np.float32)
    assert not isinstance(verdict(noise), Typical)


def test_studies_are_of_nobody_and_no_two_runs_share_one(tmp_path: Path) -> None:
    first = [dcmread(file) for file in write_studies(tmp_path / "1", NOW)]
    second = [dcmread(file) for file in write_studies(tmp_path / "2", NOW.replace(minute=16))]
    uids = {ds.StudyInstanceUID for ds in (*first, *second)}
    assert len(uids) == len(first) + len(second)
    assert all(str(ds.PatientName).startswith("Drawn^") for ds in first)
    assert [ds.ViewPosition for ds in first].count("LL") == 1


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="choose another --out"):
        write_studies(tmp_path / "file" / "below", NOW)
