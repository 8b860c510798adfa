"""Drawn chests: images that belong to nobody, for golden vectors and for tests."""

import cv2
import numpy as np

from dicomnode.domain.frame import FloatArray

_BODY, _LUNG, _HEART, _RIB = 0.62, 0.22, 0.8, 0.36


def chest_phantom(side: int, random: np.random.Generator) -> FloatArray:
    """Return a (side, side) float32 drawing in [0, 1] of an upright frontal chest; 1 is bright (dense)."""
    canvas = np.full((side, side), 0.05, dtype=np.float32)
    jitter = random.uniform(-0.02, 0.02, size=8)
    _ellipse(canvas, (0.5 + jitter[0], 0.62), (0.46, 0.56), _BODY)
    for at, sign in ((0.32 + jitter[1], 1), (0.68 + jitter[2], -1)):
        _ellipse(canvas, (at, 0.47 + jitter[3]), (0.145, 0.3 + jitter[4]), _LUNG, angle=8.0 * sign)
    for rib in np.linspace(0.25, 0.68, 7):
        for at in (0.32, 0.68):
            _ellipse(canvas, (at, rib + jitter[5]), (0.14, 0.045), _RIB, thickness=max(1, side // 90))
    _ellipse(canvas, (0.5, 0.4), (0.05, 0.38), 0.72)
    _ellipse(canvas, (0.56 + jitter[6], 0.62), (0.13 + jitter[7], 0.12), _HEART)
    _ellipse(canvas, (0.5, 0.98), (0.42, 0.2), 0.85)
    blurred = cv2.GaussianBlur(canvas, (0, 0), side / 60)
    noisy = blurred + random.normal(0.0, 0.02, size=canvas.shape)
    return np.asarray(np.clip(noisy, 0.0, 1.0), dtype=np.float32)


def _ellipse(
    canvas: FloatArray,
    centre: tuple[float, float],
    radii: tuple[float, float],
    value: float,
    *,
    angle: float = 0.0,
    thickness: int = -1,
) -> None:
    """Draw on the canvas; `centre` (x, y) and `radii` are fractions of its side."""
    side = canvas.shape[0]
    x, y = (round(c * side) for c in centre)
    across, down = (max(1, round(r * side)) for r in radii)
    cv2.ellipse(canvas, (x, y), (across, down), angle, 0, 360, value, thickness, cv2.LINE_AA)
