"""The same radiograph gives nearly the same model input, however a device rendered it."""

import cv2
import numpy as np
import pytest

from dicomnode.bundle.manifest import InputSpec
from dicomnode.bundle.preprocess import _reduce, preprocess, standardise
from dicomnode.dicom import reader
from dicomnode.imaging.pixels import render
from dicomnode.settings.node import PixelSettings
from tests.support.decoding import CODECS, radiograph_of
from tests.support.make import build, chest, stored

SPEC = InputSpec(side=224)
# Mean and 99th percentile of the absolute difference of two inputs, each in [0, 1].
LINEAR = (0.005, 0.015)
CURVED = (0.05, 0.09)


def model_input(ds):
    frame = render(radiograph_of(ds), PixelSettings(), CODECS)
    return preprocess(frame.pixels, SPEC), frame.rendering


def as_8_bit(density, curve):
    """Return a Secondary Capture of density in [0, 1] under a curve."""
    pixels = np.round(np.clip(curve(density), 0, 1) * 255).astype(np.uint8)
    return build("sc", pixels=pixels, bits=8)


def curves(density):
    low, middle, high = np.percentile(density, (0.5, 50, 99.5))
    narrow = np.percentile(density, (2, 98))
    span = high - low
    return {
        "device": (LINEAR, lambda x: (x - low) / span),
        "narrow": (LINEAR, lambda x: (x - narrow[0]) / (narrow[1] - narrow[0])),
        "wide": (LINEAR, lambda x: (x - low + 0.1 * span) / (1.2 * span)),
        "dark": (LINEAR, lambda x: (x - low - 0.02 * span) / (1.3 * span)),
        "gamma": (CURVED, lambda x: (np.clip(x - low, 0, span) / span) ** 1.5),
        "sigmoid": (CURVED, lambda x: 1 / (1 + np.exp(-4 * (x - middle) / span))),
    }


def assert_nearly_the_same(one, other, tolerance):
    difference = np.abs(one - other)
    assert difference.mean() <= tolerance[0]
    assert np.percentile(difference, 99) <= tolerance[1]


@pytest.mark.parametrize("curve", ["device", "narrow", "wide", "dark", "gamma", "sigmoid"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_15_bit_monochrome1_object_without_window_matches_its_8_bit_renderings(curve, seed):
    density = 0.25 + 0.4 * chest(700, 600, seed=seed)
    raw = build("cr", pixels=stored(density, bits=15, photometric="MONOCHROME1"), bits=15, photometric="MONOCHROME1")
    tolerance, rendering = curves(density)[curve]
    ours, how = model_input(raw)

    assert how == "percentile"
    assert_nearly_the_same(ours, model_input(as_8_bit(density, rendering))[0], tolerance)


@pytest.mark.parametrize("curve", ["device", "narrow", "wide", "dark", "gamma", "sigmoid"])
def test_the_real_15_bit_radiograph_matches_its_8_bit_renderings(shared_data, curve):
    ds = reader.read(shared_data / "dicom" / "chest-pa-monochrome1-j2k.dcm")
    density = 1 - ds.pixel_array / 32767
    with_window, how_windowed = model_input(ds)
    del ds.WindowCenter, ds.WindowWidth
    without, how = model_input(ds)
    tolerance, rendering = curves(density)[curve]

    assert (how_windowed, how) == ("window-linear", "percentile")
    assert_nearly_the_same(without, with_window, LINEAR)
    assert_nearly_the_same(without, model_input(as_8_bit(density, rendering))[0], tolerance)


@pytest.mark.parametrize("name", ["chest-pa-secondary-capture-jpeg", "chest-pa-view-in-patient-position"])
def test_a_real_8_bit_radiograph_matches_itself_as_15_bit_monochrome1(shared_data, name):
    ds = reader.read(shared_data / "dicom" / f"{name}.dcm")
    density = 0.2 + 0.6 * ds.pixel_array / 255
    raw = build("cr", pixels=stored(density, bits=15, photometric="MONOCHROME1"), bits=15, photometric="MONOCHROME1")

    assert_nearly_the_same(model_input(ds)[0], model_input(raw)[0], LINEAR)


def test_a_useless_window_changes_nothing():
    plain = build("cr", rows=700, columns=600, bits=14)
    useless = build("cr", rows=700, columns=600, bits=14, window=(40, 400))

    assert_nearly_the_same(model_input(plain)[0], model_input(useless)[0], (0, 0))


@pytest.mark.parametrize("shape", [(128, 128), (129, 200), (255, 128), (1024, 1024), (2140, 1777), (1400, 4001)])
def test_reduction_is_the_mean_of_areas(shape):
    """As OpenCV averages, within the tolerance that is stated."""
    pixels = np.random.default_rng(1).random(shape, dtype=np.float32)

    expected = cv2.resize(pixels, (128, 128), interpolation=cv2.INTER_AREA)

    assert np.abs(_reduce(pixels, 128) - expected).max() <= 5e-7


@pytest.mark.parametrize("shape", [(1024, 1024), (2140, 1777)])
def test_the_models_input_stays_where_it_was(shape):
    """Of the reduction's last places the stretched and bent grey scale makes less than a hundredth of 1/255."""
    pixels = chest(*shape)
    reduced = cv2.resize(pixels, (SPEC.source_side, SPEC.source_side), interpolation=cv2.INTER_AREA)
    enlarged = cv2.resize(standardise(reduced, SPEC), (SPEC.side, SPEC.side), interpolation=cv2.INTER_CUBIC)

    assert np.abs(preprocess(pixels, SPEC) - np.clip(enlarged, 0, 1)).max() <= 0.01 / 255
