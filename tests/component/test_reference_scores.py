"""The shipped model says nearly the same of a radiograph, however a device rendered it, and knows what is none."""

import csv
import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from pydicom import Dataset

from dicomnode.bundle.reader import Bundle, open_bundle
from dicomnode.dicom import reader
from dicomnode.domain.errors import UndecodablePixels
from dicomnode.imaging.pixels import render
from dicomnode.inference.gate import Turned, Typical, judge_pixels, repair
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.node import PixelSettings, default_bundle
from tests.support.decoding import CODECS, radiograph_of
from tests.support.make import build

LARGEST_CHANGE = 0.005
"""Largest difference of any of the 15 probabilities between two linear renderings of one radiograph."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(default_bundle())


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Predictor:
    return Predictor(bundle, threads=2)


def probabilities(predictor: Predictor, ds: Dataset) -> npt.NDArray[np.float64]:
    reading = predictor.read(render(radiograph_of(ds), PixelSettings(), CODECS))
    return np.array([score.probability for score in reading.scores])


def passes(bundle: Bundle, predictor: Predictor, ds: Dataset) -> bool:
    """Tell whether the whole image gets findings, if need be after one repair, as in the pipeline."""
    try:
        frame = render(radiograph_of(ds), PixelSettings(), CODECS)
    except UndecodablePixels:
        return False
    seen = judge_pixels(predictor.read(frame), bundle.manifest.gate)
    if isinstance(seen, Turned):
        seen = judge_pixels(predictor.read(repair(frame, seen)), bundle.manifest.gate)
    return isinstance(seen, Typical)


def test_the_golden_vectors_of_the_shipped_model_are_met_here(predictor: Predictor) -> None:
    assert predictor.replay_golden() < 1e-3


@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (0.0, 100.0), (2.0, 98.0)])
def test_a_15_bit_object_and_its_8_bit_rendering_score_nearly_the_same(
    percentiles: tuple[float, float], predictor: Predictor, shared_data: Path
) -> None:
    ds = reader.read(shared_data / "dicom" / "chest-pa-monochrome1-j2k.dcm")
    density = 1 - ds.pixel_array / 32767
    low, high = np.percentile(density, percentiles)
    pixels = np.round(np.clip((density - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    rendered = build("sc", pixels=pixels, bits=8)
    windowed = probabilities(predictor, ds)
    del ds.WindowCenter, ds.WindowWidth
    raw = probabilities(predictor, ds)
    assert np.abs(raw - windowed).max() <= LARGEST_CHANGE
    assert np.abs(raw - probabilities(predictor, rendered)).max() <= LARGEST_CHANGE


@pytest.mark.parametrize(
    "name", ["chest-pa-monochrome1-j2k", "chest-pa-secondary-capture-jpeg", "chest-pa-view-in-patient-position"]
)
def test_real_chests_pass_the_pixel_gate(name: str, bundle: Bundle, predictor: Predictor, shared_data: Path) -> None:
    assert passes(bundle, predictor, reader.read(shared_data / "dicom" / f"{name}.dcm"))


@pytest.mark.parametrize("name", ["extremity-cr-j2k", "ct-j2k"])
def test_a_leg_and_a_ct_fail_the_pixel_gate_whatever_their_tags_say(
    name: str, bundle: Bundle, predictor: Predictor, shared_data: Path
) -> None:
    assert not passes(bundle, predictor, reader.read(shared_data / "dicom" / f"{name}.dcm"))


def test_the_gate_tells_foreign_frontals_from_everything_else(
    bundle: Bundle, predictor: Predictor, shared_data: Path
) -> None:
    passed: dict[str, list[bool]] = {}
    with zipfile.ZipFile(shared_data / "gate" / "gate-images.zip") as archive:
        listing = next(name for name in archive.namelist() if name.endswith("manifest.csv"))
        files = {Path(name).name: name for name in archive.namelist()}
        for row in csv.DictReader(io.TextIOWrapper(archive.open(listing), encoding="utf-8")):
            encoded = np.frombuffer(archive.read(files[Path(row["image"]).name]), np.uint8)
            ds = build("sc", pixels=cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), bits=8)
            passed.setdefault(row["kind"], []).append(passes(bundle, predictor, ds))
    assert np.mean(passed["frontal"]) >= 0.98
    assert not any(passed["lateral"])
    assert not any(passed["not_chest_radiograph"])
    assert min(map(len, passed.values())) >= 20
