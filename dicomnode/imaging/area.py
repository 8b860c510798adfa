"""Where in the pixel matrix the radiograph is: padding, shutters, collimators and blank borders are not."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from dicomnode.dicom.attributes import integer, numbers, texts
from dicomnode.imaging.codecs.decoding import PixelLayout
from dicomnode.imaging.codecs.process import StoredArray
from dicomnode.imaging.values import Grid, Values, percentile

BoolArray = npt.NDArray[np.bool_]
WHOLE: Grid = (slice(None), slice(None))

_LEAST_CONTENT = 0.25
_COARSE_SIDE = 512
_NEARLY_CONSTANT = 0.02
_WHOLE_EDGE = 0.95


def padding(ds: Dataset, stored: StoredArray, layout: PixelLayout) -> BoolArray | None:
    """Return where the stored values are padding, or None when no padding is declared or all would be.

    The pair of value and range limit may come in either order. Source: PS3.3 C.7.5.1.1.2.
    """
    value, limit = _stored_value(ds, "PixelPaddingValue", layout), _stored_value(ds, "PixelPaddingRangeLimit", layout)
    if value is None:
        return None
    low, high = sorted((value, limit if limit is not None else value))
    mask = np.asarray((stored >= low) & (stored <= high))
    return mask if mask.any() and not mask.all() else None


def shutter(ds: Dataset, layout: PixelLayout) -> BoolArray | None:
    """Return where the display shutter hides the image, or None. Source: PS3.3 C.7.6.11."""
    return _outside(ds, layout, "Shutter", "ShutterShape", "CenterOfCircularShutter", "RadiusOfCircularShutter")


def collimator(ds: Dataset, layout: PixelLayout) -> BoolArray | None:
    """Return where the tags place the X-ray collimator, or None. Source: PS3.3 C.8.7.3."""
    centre, radius = "CenterOfCircularCollimator", "RadiusOfCircularCollimator"
    return _outside(ds, layout, "Collimator", "CollimatorShape", centre, radius)


def content(
    values: Values, excluded: BoolArray | None, declared_collimator: BoolArray | None, grid: Grid = WHOLE
) -> BoolArray:
    """Return where the radiograph is: neither excluded, nor collimator by the tags, nor blank border.

    A border is found only when the tags declare no collimator: a connected region at an end of the grey scale,
    nearly constant (within 2 % of the span), that runs along nearly a whole edge of the image.
    Whatever would leave less than a quarter of the image is not believed.
    `grid`: the rows and columns of the image to tell it of.
    """
    inside = np.ones(values.stored[grid].shape, dtype=bool) if excluded is None else ~excluded[grid]
    border = declared_collimator[grid] if declared_collimator is not None else _blank_border(values, excluded, grid)
    without = inside if border is None else inside & ~border
    for candidate in (without, inside):
        if candidate.mean() >= _LEAST_CONTENT:
            return candidate
    return np.ones_like(inside)


def _stored_value(ds: Dataset, keyword: str, layout: PixelLayout) -> int | None:
    """Read a value that has the pixels' representation; devices write it in the other one too."""
    value = integer(ds, keyword)
    low, high = layout.stored_range
    if value is None or low <= value <= high:
        return value
    turned = value - (1 << 16) if value > high and layout.signed else value & ((1 << layout.bits_allocated) - 1)
    return turned if low <= turned <= high else value


def _outside(
    ds: Dataset, layout: PixelLayout, name: str, shape_keyword: str, centre_keyword: str, radius_keyword: str
) -> BoolArray | None:
    """Return the region outside all shapes that a shutter or collimator module describes, if it is believable."""
    shapes = {shape.upper() for shape in texts(ds, shape_keyword)}
    if not shapes:
        return None
    inside = np.ones((layout.rows, layout.columns), dtype=np.uint8)
    if "RECTANGULAR" in shapes:
        inside &= _rectangle(ds, layout, name)
    if "CIRCULAR" in shapes:
        inside &= _circle(numbers(ds, centre_keyword), numbers(ds, radius_keyword), layout)
    if "POLYGONAL" in shapes:
        inside &= _polygon(numbers(ds, f"VerticesOfThePolygonal{name}"), layout)
    covered = float(inside.mean())
    return None if covered < _LEAST_CONTENT or covered == 1.0 else inside == 0


def _rectangle(ds: Dataset, layout: PixelLayout, name: str) -> npt.NDArray[np.uint8]:
    """Return 1 inside the edges, everywhere when they are not pixel coordinates (some devices write millimetres)."""
    left, right = integer(ds, f"{name}LeftVerticalEdge"), integer(ds, f"{name}RightVerticalEdge")
    upper, lower = integer(ds, f"{name}UpperHorizontalEdge"), integer(ds, f"{name}LowerHorizontalEdge")
    full = np.ones((layout.rows, layout.columns), dtype=np.uint8)
    if left is None or right is None or upper is None or lower is None:
        return full
    if not (0 <= left < right <= layout.columns + 1 and 0 <= upper < lower <= layout.rows + 1):
        return full
    inside = np.zeros_like(full)
    # Edges are counted from 1 and lie outside the rectangle.
    inside[upper : lower - 1, left : right - 1] = 1
    return inside


def _circle(centre: tuple[float, ...], radius: tuple[float, ...], layout: PixelLayout) -> npt.NDArray[np.uint8]:
    inside = np.zeros((layout.rows, layout.columns), dtype=np.uint8)
    if len(centre) != 2 or len(radius) != 1 or not 0 < radius[0] <= layout.rows + layout.columns:
        return np.ones_like(inside)
    row, column = (int(value) - 1 for value in centre)
    if not (0 <= row < layout.rows and 0 <= column < layout.columns):
        return np.ones_like(inside)
    return np.asarray(cv2.circle(inside, (column, row), int(radius[0]), color=1, thickness=-1), dtype=np.uint8)


def _polygon(vertices: tuple[float, ...], layout: PixelLayout) -> npt.NDArray[np.uint8]:
    inside = np.zeros((layout.rows, layout.columns), dtype=np.uint8)
    if len(vertices) < 6 or len(vertices) % 2 or len(vertices) > 2048 or max(map(abs, vertices)) > 1_000_000:
        return np.ones_like(inside)
    points = np.array(vertices, dtype=np.int32).reshape(-1, 2)[:, ::-1] - 1
    return np.asarray(cv2.fillPoly(inside, [points], color=1), dtype=np.uint8)


def _blank_border(values: Values, excluded: BoolArray | None, grid: Grid) -> BoolArray | None:
    """Return the regions along an edge that are nearly constant at either end of the grey scale, or None."""
    step = max(1, max(values.shape) // _COARSE_SIDE)
    coarse = values.at((slice(None, None, step), slice(None, None, step)))
    seen = np.ones(coarse.shape, dtype=bool) if excluded is None else ~excluded[::step, ::step]
    if not seen.any():
        return None
    inside = coarse[seen]
    low, high = percentile(inside, 0.5), percentile(inside, 99.5)
    tolerance = _NEARLY_CONSTANT * (high - low)
    border = np.zeros(coarse.shape, dtype=bool)
    for extreme in (coarse <= low + tolerance, coarse >= high - tolerance):
        border |= _along_an_edge(extreme & seen)
    if not border.any():
        return None
    grown = cv2.dilate(border.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    rows, columns = (np.arange(side)[along] // step for side, along in zip(values.shape, grid, strict=True))
    return np.asarray(grown[rows][:, columns], dtype=bool)


def _along_an_edge(mask: BoolArray) -> BoolArray:
    """Return the connected regions that run along nearly a whole edge, as a collimator's blade does.

    Air beside the neck and the white of the abdomen touch edges too, but not from corner to corner.
    """
    if all(np.count_nonzero(edge) < _WHOLE_EDGE * edge.size for edge in _edges(mask)):
        return np.zeros(mask.shape, dtype=bool)
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    wanted = set()
    for edge in _edges(labels):
        found, counts = np.unique(edge[edge > 0], return_counts=True)
        wanted.update(found[counts >= _WHOLE_EDGE * edge.size].tolist())
    return np.asarray(np.isin(labels, list(wanted))) if wanted else np.zeros(mask.shape, dtype=bool)


def _edges(image: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    return image[0], image[-1], image[:, 0], image[:, -1]
