"""The luminance of colour samples, whatever the tags call their colours.

A radiograph that was stored as colour is grey: its three components are equal (RGB), or two of them are constant
(YBR). That shows in the samples themselves, and tags that disagree are left over from before a conversion.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dicomnode.domain.frame import FloatArray
from dicomnode.imaging.codecs.codestream import YBR
from dicomnode.imaging.codecs.process import StoredArray

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SAMPLED_SIDE = 256
_TOLERANCE = 2 / 255
"""Lossy frames round each component by itself."""
_NEARLY_ALL = 99.0


def luminance(colours: StoredArray, declared: str) -> FloatArray:
    """Return (rows, columns) luminance in the scale of (rows, columns, 3) samples.

    `declared`: "RGB" or "YBR", by the frame or the tags; what grey samples show counts more.
    Source: PS3.3 C.7.6.3.1.2.
    """
    if declared == YBR or is_grey(colours):
        return np.asarray(colours[..., 0], dtype=np.float32)
    return np.asarray(colours.astype(np.float32) @ _LUMA, dtype=np.float32)


def is_grey(colours: StoredArray) -> bool:
    """Tell whether (rows, columns, 3) samples are a grey image stored as colour, of which the first component is all.

    Either the components are equal, as in RGB, or the second and third are constant at the middle, as in YBR.
    """
    rows, columns = (max(1, side // _SAMPLED_SIDE) for side in colours.shape[:2])
    first, second, third = np.moveaxis(colours[::rows, ::columns].astype(np.int32), -1, 0)
    top = float(np.iinfo(colours.dtype).max)
    middle, tolerance = (top + 1) / 2, max(1.0, _TOLERANCE * top)
    equal = _within(first - second, tolerance) and _within(first - third, tolerance)
    return equal or (_within(second - middle, tolerance) and _within(third - middle, tolerance))


def _within(differences: npt.NDArray[Any], tolerance: float) -> bool:
    return bool(np.percentile(np.abs(differences), _NEARLY_ALL) <= tolerance)
