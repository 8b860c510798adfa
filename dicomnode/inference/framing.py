"""Parts of a frame that may hold the chest where the whole does not look like one.

A bedside image may lie tilted in a black frame, or show arms and abdomen as well. The model was trained on images that
the chest fills, so it reads a window of such a frame as it would have been collimated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from dicomnode.domain.finding import SaliencyMap
from dicomnode.domain.frame import FloatArray

_COARSE_SIDE = 256
_NEARLY_CONSTANT = 0.02
_LEAST_FIELD = 0.2
_LEAST_TILT_DEGREES, _MOST_TILT_DEGREES = 3.0, 40.0
_SCALES = (0.85, 0.7, 0.55)
_POSITIONS = (0.0, 0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameWindow:
    """A rectangle in a frame, which may be tilted.

    `centre`: (column, row), `size`: (columns, rows), both in pixels. `degrees`: how far it is turned clockwise on the
    screen.
    """

    centre: tuple[float, float]
    size: tuple[float, float]
    degrees: float = 0.0

    def of(self, pixels: FloatArray) -> FloatArray:
        """Return the part of a frame's (rows, columns) pixels in the window, set upright."""
        columns, rows = max(1, round(self.size[0])), max(1, round(self.size[1]))
        if self.degrees == 0.0:
            left, top = round(self.centre[0] - self.size[0] / 2), round(self.centre[1] - self.size[1] / 2)
            return pixels[max(0, top) : top + rows, max(0, left) : left + columns]
        turned = cv2.warpAffine(pixels, self._from_frame(), (columns, rows), flags=cv2.INTER_LINEAR)
        return np.asarray(turned, dtype=np.float32)

    def onto_frame(self, saliency: SaliencyMap, shape: tuple[int, int]) -> SaliencyMap:
        """Return the window's map on a grid over the whole frame of `shape` rows and columns, nothing outside of it.

        Cells keep their size, so that the sum over them stays nearly the same.
        """
        rows, columns = saliency.values.shape
        cell = (self.size[0] / columns, self.size[1] / rows)
        grid = (max(1, round(shape[1] / cell[0])), max(1, round(shape[0] / cell[1])))
        to_frame = np.vstack([self._to_frame(), [0, 0, 1]])
        # From cell to pixel of the window, to pixel of the frame, to cell of the frame; a cell's middle is half of it.
        cells = (
            _scaling(grid[0] / shape[1], grid[1] / shape[0], -0.5)
            @ to_frame
            @ _scaling(cell[0], cell[1], 0.5, before=True)
        )
        values = cv2.warpAffine(saliency.values, cells[:2], grid, flags=cv2.INTER_LINEAR)
        placed = np.asarray(values, dtype=np.float32)
        placed.setflags(write=False)
        return replace(saliency, values=placed)

    def _to_frame(self) -> npt.NDArray[np.float64]:
        return np.asarray(cv2.invertAffineTransform(self._from_frame()), dtype=np.float64)

    def _from_frame(self) -> npt.NDArray[np.float64]:
        """Return the affine transformation (2, 3) of (column, row) in the frame to that in the window."""
        matrix = np.asarray(cv2.getRotationMatrix2D(self.centre, self.degrees, 1.0), dtype=np.float64)
        matrix[:, 2] += np.array(self.size) / 2 - np.array(self.centre)
        return matrix


def windows_of(pixels: FloatArray) -> tuple[FrameWindow, ...]:
    """Return the windows in which the chest is looked for: the exposed field, and smaller ones in it.

    `pixels`: (rows, columns) in [0, 1].
    """
    rows, columns = pixels.shape
    whole = FrameWindow(centre=(columns / 2, rows / 2), size=(columns, rows))
    field = exposed_field(pixels)
    upright = replace(field, degrees=0.0) if field else whole
    fields = [one for one in (field, upright if field else None) if one is not None]
    return (*dict.fromkeys(fields), *_parts(upright))


def exposed_field(pixels: FloatArray) -> FrameWindow | None:
    """Return the rectangle that was exposed, or None where that is the whole image.

    What is not exposed is nearly constant at either end of the grey scale and reaches the image's edge.
    """
    factor = max(1.0, max(pixels.shape) / _COARSE_SIDE)
    side = (max(1, round(pixels.shape[1] / factor)), max(1, round(pixels.shape[0] / factor)))
    coarse = cv2.resize(pixels, side, interpolation=cv2.INTER_AREA)
    exposed = cv2.morphologyEx(_exposed(coarse), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(exposed, connectivity=4)
    if len(stats) < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    share = stats[largest, cv2.CC_STAT_AREA] / exposed.size
    if not _LEAST_FIELD <= share < 1.0:
        return None
    return _rectangle(labels == largest, pixels.shape[1] / side[0], pixels.shape[0] / side[1])


def _exposed(coarse: FloatArray) -> npt.NDArray[np.uint8]:
    low, high = np.percentile(coarse, (0.5, 99.5))
    tolerance = _NEARLY_CONSTANT * (high - low)
    blank = np.zeros(coarse.shape, dtype=bool)
    for extreme in (coarse <= low + tolerance, coarse >= high - tolerance):
        _, labels = cv2.connectedComponents(extreme.astype(np.uint8), connectivity=4)
        edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        blank |= np.isin(labels, np.unique(edges[edges > 0]))
    return np.asarray(~blank, dtype=np.uint8)


def _rectangle(mask: npt.NDArray[np.bool_], column_step: float, row_step: float) -> FrameWindow | None:
    """Return the least rectangle about a region, tilted if the region clearly is."""
    rows, columns = np.nonzero(mask)
    points = np.stack([(columns + 0.5) * column_step, (rows + 0.5) * row_step], axis=1).astype(np.float32)
    centre, size, degrees = cv2.minAreaRect(points)
    if degrees > 45:
        degrees, size = degrees - 90, (size[1], size[0])
    left, top = points.min(axis=0)
    right, bottom = points.max(axis=0)
    straight = FrameWindow(centre=((left + right) / 2, (top + bottom) / 2), size=(right - left, bottom - top))
    if min(size) < 1 or min(straight.size) < 1:
        return None
    fills = size[0] * size[1] < 0.9 * straight.size[0] * straight.size[1]
    if fills and _LEAST_TILT_DEGREES <= abs(degrees) <= _MOST_TILT_DEGREES:
        return FrameWindow(centre=(centre[0], centre[1]), size=(size[0], size[1]), degrees=degrees)
    return straight


def _parts(field: FrameWindow) -> Iterator[FrameWindow]:
    """Yield smaller windows all over a field."""
    left, top = field.centre[0] - field.size[0] / 2, field.centre[1] - field.size[1] / 2
    for scale in _SCALES:
        size = (field.size[0] * scale, field.size[1] * scale)
        for down in _POSITIONS:
            for across in _POSITIONS:
                corner = (left + across * (field.size[0] - size[0]), top + down * (field.size[1] - size[1]))
                yield FrameWindow(centre=(corner[0] + size[0] / 2, corner[1] + size[1] / 2), size=size)


def _scaling(across: float, down: float, shift: float, *, before: bool = False) -> npt.NDArray[np.float64]:
    """Return the (3, 3) scaling that shifts by `shift` cells after it, or before it."""
    shifts = (shift * across, shift * down) if before else (shift, shift)
    return np.array([[across, 0.0, shifts[0]], [0.0, down, shifts[1]], [0.0, 0.0, 1.0]])
