"""Where in the pixel matrix the radiograph is: padding, shutters, collimators and blank borders are not."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dicomnode.dicom.header import Aperture, PixelTags
from dicomnode.imaging.codecs.process import StoredArray
from dicomnode.imaging.decoding import PixelLayout
from dicomnode.imaging.values import Grid, Values, percentile

BoolArray = npt.NDArray[np.bool_]
WHOLE: Grid = (slice(None), slice(None))

_LEAST_CONTENT = 0.25
_COARSE_SIDE = 512
_NEARLY_CONSTANT = 0.02
_WHOLE_EDGE = 0.95


def padding(tags: PixelTags, stored: StoredArray, layout: PixelLayout) -> BoolArray | None:
    """Return where the stored values are padding, or None when no padding is declared or all would be.

    The pair of value and range limit may come in either order. Source: PS3.3 C.7.5.1.1.2.
    """
    if tags.padding_value is None:
        return None
    value = _stored_value(tags.padding_value, layout)
    limit = value if tags.padding_range_limit is None else _stored_value(tags.padding_range_limit, layout)
    low, high = sorted((value, limit))
    mask = np.asarray((stored >= low) & (stored <= high))
    return mask if mask.any() and not mask.all() else None


def outside(aperture: Aperture, layout: PixelLayout) -> BoolArray | None:
    """Return what is outside all shapes of a display shutter or a collimator, or None when that is not believable.

    Source: PS3.3 C.7.6.11 and C.8.7.3.
    """
    if not aperture.shapes:
        return None
    inside = np.ones((layout.rows, layout.columns), dtype=np.uint8)
    if "RECTANGULAR" in aperture.shapes:
        inside &= _rectangle(aperture, layout)
    if "CIRCULAR" in aperture.shapes:
        inside &= _circle(aperture, layout)
    if "POLYGONAL" in aperture.shapes:
        inside &= _polygon(aperture.vertices, layout)
    covered = float(inside.mean())
    return None if covered < _LEAST_CONTENT or covered == 1.0 else inside == 0


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


def _stored_value(value: int, layout: PixelLayout) -> int:
    """Return a value in the pixels' representation; devices write it in the other one too."""
    low, high = layout.stored_range
    if low <= value <= high:
        return value
    turned = value - (1 << 16) if value > high and layout.signed else value & ((1 << layout.bits_allocated) - 1)
    return turned if low <= turned <= high else value


def _rectangle(aperture: Aperture, layout: PixelLayout) -> npt.NDArray[np.uint8]:
    """Return 1 inside the edges, everywhere when they are not pixel coordinates (some devices write millimetres)."""
    left, right, upper, lower = aperture.edges
    full = np.ones((layout.rows, layout.columns), dtype=np.uint8)
    if left is None or right is None or upper is None or lower is None:
        return full
    if not (0 <= left < right <= layout.columns + 1 and 0 <= upper < lower <= layout.rows + 1):
        return full
    inside = np.zeros_like(full)
    # Edges are counted from 1 and lie outside the rectangle.
    inside[upper : lower - 1, left : right - 1] = 1
    return inside


def _circle(aperture: Aperture, layout: PixelLayout) -> npt.NDArray[np.uint8]:
    inside = np.zeros((layout.rows, layout.columns), dtype=np.uint8)
    centre, radius = aperture.centre, aperture.radius
    if len(centre) != 2 or radius is None or not 0 < radius <= layout.rows + layout.columns:
        return np.ones_like(inside)
    row, column = (int(value) - 1 for value in centre)
    if not (0 <= row < layout.rows and 0 <= column < layout.columns):
        return np.ones_like(inside)
    return np.asarray(cv2.circle(inside, (column, row), int(radius), color=1, thickness=-1), dtype=np.uint8)


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
