"""Contours of a map as closed lines in the pixel coordinates of the source image."""

import cv2
import numpy as np
import numpy.typing as npt

from dicomnode.domain.finding import SaliencyMap
from dicomnode.domain.frame import Frame
from dicomnode.results.overlay import enlarge
from dicomnode.results.panel import OUTLINE_LEVEL

Line = npt.NDArray[np.float64]

MAXIMUM_POINTS = 200
"""Points of one contour; a line of more is thinned, which moves it by less than what the map resolves."""
_GRID = 512
_FINEST = 0.25


def contours(saliency: SaliencyMap, frame: Frame) -> list[Line]:
    """Return the outlines at `OUTLINE_LEVEL` of the map's Grad-CAM, largest first; none without evidence.

    Each is (points, 2) of column and row, its last point its first; the source's top left corner is 0, 0 and the
    middle of its first pixel 0.5, 0.5. Source: PS3.3 C.10.5.1.2 (PIXEL).
    """
    if float(saliency.values.max()) <= 0:
        return []
    rows, columns = frame.pixels.shape
    scale = min(1.0, _GRID / max(rows, columns))
    grid = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    # A margin outside the image closes the lines that run along its border.
    inside = np.pad((enlarge(saliency.values, grid) >= OUTLINE_LEVEL).astype(np.uint8), 1)
    found, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    factors = np.array([columns / grid[1], rows / grid[0]])
    closed = (_thinned(line) for line in sorted(found, key=cv2.contourArea, reverse=True))
    return [_on_source((line - 1 + 0.5) * factors, frame) for line in closed if len(line) > 3]


def _thinned(line: npt.NDArray[np.int32]) -> Line:
    """Return the closed line with at most `MAXIMUM_POINTS`."""
    tolerance = _FINEST
    points = cv2.approxPolyDP(line, tolerance, closed=True)[:, 0, :]
    while len(points) >= MAXIMUM_POINTS:
        tolerance *= 2
        points = cv2.approxPolyDP(line, tolerance, closed=True)[:, 0, :]
    return np.concatenate([points, points[:1]]).astype(np.float64)


def _on_source(line: Line, frame: Frame) -> Line:
    """Return a line of the upright frame on the source image, of which it may be a turned copy."""
    rows, columns = frame.pixels.shape
    for _ in range(frame.turned_from_source % 4):
        line = np.stack([rows - line[:, 1], line[:, 0]], axis=1)
        rows, columns = columns, rows
    return line
