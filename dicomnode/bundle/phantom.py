"""Drawn chests that belong to nobody: for golden vectors, the demo, tests and benchmarks.

They are ellipses, curves and noise, not anatomy. Proportions and grey values were chosen so that the shipped model's
pixel gate takes them for frontal chests; what the model finds in them means nothing. The same generator gives the same
drawing. A bundle keeps its golden images, so a change here changes those of later bundles only.
"""

import cv2
import numpy as np
import numpy.typing as npt

from dicomnode.domain.frame import FloatArray

Plane = npt.NDArray[np.float64]

_UNEXPOSED = 0.97


def draw_chest(rows: int, columns: int, random: np.random.Generator, *, collimator: int = 0) -> FloatArray:
    """Return a drawn frontal chest: (rows, columns) float32 in [0, 1]; 1 is bright (dense).

    Two dark lungs, a bright mediastinum with the heart to the viewer's right, ribs, clavicles, domes of the diaphragm,
    and air beside neck and trunk. `collimator`: width in pixels of a bright border that was not exposed.
    """
    y, x = np.mgrid[0:rows, 0:columns]
    y, x = (y + 0.5) / rows * 2 - 1, (x + 0.5) / columns * 2 - 1
    shift = random.uniform(-0.02, 0.02, 5)
    body = _body(x, y)
    right = _blob(x + 0.321 - shift[0], y + 0.049, 0.31, 0.655, 0.155)
    left = _blob(x - 0.321 - shift[1], y + 0.049, 0.31, 0.655, 0.155)
    lungs = np.maximum(right, left)
    image = 0.075 + 0.504 * body - 0.36 * lungs
    image += 0.128 * np.exp(-((x / 0.152) ** 2)) * body
    image += 0.239 * _blob(x - 0.143 - shift[2], y - 0.249 - shift[3], 0.34, 0.314, 0.15)
    image += _bones(x, y, lungs, body, shift[4]) + _abdomen(x, y) * body
    image += 0.7 * _texture(rows, columns, random) * (0.3 + body)
    smooth = cv2.GaussianBlur(image, (0, 0), max(rows, columns) / 270)
    if collimator:
        smooth[:collimator] = smooth[-collimator:] = smooth[:, :collimator] = smooth[:, -collimator:] = _UNEXPOSED
    return np.asarray(np.clip(smooth, 0.0, 1.0), dtype=np.float32)


def _blob(x: Plane, y: Plane, across: float, down: float, soft: float) -> Plane:
    """Return an ellipse around the origin: 1 inside, 0 outside, with an edge as wide as `soft`."""
    radius = np.sqrt((x / across) ** 2 + (y / down) ** 2)
    return np.asarray(1 / (1 + np.exp((radius - 1) / soft)))


def _body(x: Plane, y: Plane) -> Plane:
    trunk = 1 / (1 + np.exp((np.abs(x) - 0.856) / 0.033))
    shoulders = 1 / (1 + np.exp((0.346 * np.abs(x) - 0.95 - y) / 0.05))
    return np.asarray(np.maximum(trunk * shoulders, _blob(x, y + 1.1, 0.226, 0.6, 0.12)))


def _bones(x: Plane, y: Plane, lungs: Plane, body: Plane, shift: float) -> Plane:
    """Return ribs and clavicles, with what stands out at the hila."""
    ribs = 0.044 * np.clip(np.sin(2 * np.pi * (3.946 * y - 1.234 * x**2 + shift)), 0, 1) * (lungs + 0.3)
    reach = (np.abs(x) > 0.08) & (np.abs(x) < 0.8)
    clavicles = 0.107 * np.exp(-(((y + 0.613 + 0.163 * np.abs(x)) / 0.05) ** 2)) * reach
    hila = 0.08 * (_blob(x + 0.17, y, 0.1, 0.18, 0.4) + _blob(x - 0.18, y + 0.02, 0.1, 0.18, 0.4))
    return np.asarray((ribs + clavicles) * body + hila)


def _abdomen(x: Plane, y: Plane) -> Plane:
    domes = 0.467 + 0.201 * (np.abs(np.abs(x) - 0.42) / 0.42) ** 2
    return np.asarray(0.245 / (1 + np.exp(-(y - domes) / 0.05)))


def _texture(rows: int, columns: int, random: np.random.Generator) -> Plane:
    """Return noise of three grains."""
    grains = ((10, 0.021), (26, 0.025), (64, 0.011))
    return np.asarray(
        sum(
            weight * cv2.resize(random.normal(0, 1, (cells, cells)), (columns, rows), interpolation=cv2.INTER_CUBIC)
            for cells, weight in grains
        )
    )
