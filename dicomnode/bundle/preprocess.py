"""The one function that makes a model input of a radiograph, used in training and in serving alike."""

import cv2
import numpy as np

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.frame import FloatArray


def preprocess(pixels: FloatArray, spec: InputSpec) -> FloatArray:
    """Return the model input of one radiograph.

    `pixels`: (rows, columns) float32 in [0, 1]; 1 is bright (MONOCHROME2 sense). Result: (side, side) float32 in
    [0, 1]. The image is squashed to a square, as NIH's renderings were, and first reduced to `source_side`, so that
    the resolution it came in cannot be read from the input. The grey scale is then standardised (see
    `standardise`), so that the same radiograph gives nearly the same tensor under any sensible window.
    """
    reduced = _reduce(pixels, spec.source_side)
    standard = standardise(reduced, spec)
    if spec.side == spec.source_side:
        return standard
    enlarged = cv2.resize(standard, (spec.side, spec.side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(enlarged, 0.0, 1.0), dtype=np.float32)


def standardise(pixels: FloatArray, spec: InputSpec) -> FloatArray:
    """Stretch the central region's percentiles to [0, 1] and bend the curve so that its median is mid-grey.

    Only the centre is measured: borders hold collimator, padding and burned-in text. The exponent is bounded, since
    a wholly white lung must stay whiter than a clear one.
    """
    rows, columns = pixels.shape
    top, left = (round(n * (1 - spec.centre_fraction) / 2) for n in (rows, columns))
    centre = pixels[top : rows - top, left : columns - left]
    low, median, high = np.percentile(centre, (spec.low_percentile, 50.0, spec.high_percentile))
    if high - low < 1e-6:
        return np.full_like(pixels, 0.5)
    stretched = np.clip((pixels - low) / (high - low), 0.0, 1.0)
    middle = float(np.clip((median - low) / (high - low), 1e-3, 1 - 1e-3))
    exponent = float(np.clip(np.log(0.5) / np.log(middle), *spec.gamma_bounds))
    return np.asarray(np.power(stretched, exponent), dtype=np.float32)


def _reduce(pixels: FloatArray, side: int) -> FloatArray:
    """Return (side, side) float32 by area averaging where the image shrinks, linear where it must grow."""
    rows, columns = pixels.shape
    if (rows, columns) == (side, side):
        return np.asarray(pixels, dtype=np.float32)
    shrinks = rows >= side and columns >= side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=method), dtype=np.float32)
