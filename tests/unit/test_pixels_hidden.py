"""What does not count as picture: padding, shutters, and what a collimator leaves dark."""

import numpy as np
import pytest
from pydicom.tag import Tag

from tests.support.make import build, chest, stored
from tests.support.rendered import COLUMNS, FULL, ROWS, difference, frame, made


def test_padding_is_black_and_does_not_count_for_the_percentiles():
    pixels = stored(0.2 + 0.5 * chest(ROWS, COLUMNS), bits=12, photometric="MONOCHROME1")
    padded = pixels.copy()
    padded[:60] = 0
    rendered = frame(made(pixels=padded, photometric="MONOCHROME1", padding=0))
    unpadded = frame(made(pixels=pixels[60:], photometric="MONOCHROME1"))

    assert (rendered.pixels[:60] == 0).all()
    assert np.abs(rendered.pixels[60:] - unpadded.pixels).max() < 0.03


@pytest.mark.parametrize("limits", [(0, 20), (20, 0)])
def test_a_padding_range_may_be_written_in_either_order(limits):
    pixels = np.maximum(stored(chest(ROWS, COLUMNS), bits=12), 100)
    pixels[:, :30] = 13
    rendered = frame(made(pixels=pixels, padding=limits, window=FULL))

    assert (rendered.pixels[:, :30] == 0).all()
    assert rendered.pixels[:, 30:].min() > 0


def test_negative_padding_written_as_unsigned_is_understood():
    pixels = stored(chest(ROWS, COLUMNS), bits=12, signed=True).astype(np.int16)
    pixels[:30] = -2000
    ds = made(pixels=pixels, bits=16, signed=True, photometric="MONOCHROME1", window=(0, 4096))
    ds.add_new(Tag("PixelPaddingValue"), "US", 65536 - 2000)

    assert (frame(ds).pixels[:30] == 0).all()


def test_an_image_that_is_all_padding_is_not_believed_to_be():
    assert frame(made(pixels=np.full((ROWS, COLUMNS), 7, np.uint16), padding=7)).pixels.shape == (ROWS, COLUMNS)


def shape_tags(name: str, edges: tuple[int, int, int, int]) -> dict[str, object]:
    keys = ("LeftVerticalEdge", "RightVerticalEdge", "UpperHorizontalEdge", "LowerHorizontalEdge")
    return {f"{name}Shape": "RECTANGULAR"} | {f"{name}{key}": edge for key, edge in zip(keys, edges, strict=True)}


def test_what_a_shutter_hides_is_black():
    rendered = frame(made(window=FULL, tags=shape_tags("Shutter", (20, 181, 30, 211))))

    assert (rendered.pixels[:30] == 0).all()
    assert (rendered.pixels[:, :20] == 0).all()
    assert (rendered.pixels[30:210, 20:180] > 0).all()
    assert (rendered.pixels[210:] == 0).all()


def test_round_and_polygonal_shutters_hide_their_outside():
    circle = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [120, 100], "RadiusOfCircularShutter": 90}
    triangle = {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 100, 240, 1, 240, 200]}
    seen = [frame(made(window=FULL, tags=tags)).pixels > 0 for tags in (circle, triangle)]

    assert seen[0].mean() == pytest.approx(np.pi * 90**2 / (ROWS * COLUMNS), abs=0.01)
    assert seen[1].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("edges", [(-184, 184, 907, 1299), (0, 9000, 0, 9000), (150, 20, 30, 210), (5, 7, 5, 7)])
def test_edges_that_are_no_pixel_coordinates_hide_nothing(edges):
    rendered = frame(made(window=FULL, tags=shape_tags("Shutter", edges)))

    assert difference(rendered, frame(made(window=FULL))) == 0


@pytest.mark.parametrize("declared", [False, True])
def test_a_collimator_does_not_count_for_the_percentiles(declared):
    inner = 0.3 + 0.3 * chest(ROWS, COLUMNS)
    open_ = np.full((ROWS + 80, COLUMNS + 80), 0.99, dtype=np.float32)
    open_[40:-40, 40:-40] = inner
    edges = shape_tags("Collimator", (40, COLUMNS + 41, 40, ROWS + 41)) if declared else {}
    inside = frame(build("cr", pixels=stored(open_, bits=14), bits=14, tags=edges)).pixels[40:-40, 40:-40]
    alone = frame(build("cr", pixels=stored(inner, bits=14), bits=14)).pixels

    assert np.abs(inside - alone).max() < 0.02
