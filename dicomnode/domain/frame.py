"""A decoded radiograph on its way to the model."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dicomnode.domain.instance import InstanceRef

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One radiograph as it should be looked at.

    `pixels`: (rows, columns) float32 in [0, 1], read-only; 1 is bright, that is dense tissue (MONOCHROME2 sense).
    `spacing_mm`: (row, column) distance, or None when the object states none.
    `window`: the modality values that became 0 and 1, where the node had to choose them itself.
    `turned_from_source`: quarter turns counter-clockwise, as of `numpy.rot90`, that took the stored pixel matrix to
    `pixels`; `inverted_from_source`: whether the grey scale was also inverted. Both are 0 and False unless the
    pixel gate repaired the image. `left_right_verified`: False after a repair that may have left a mirror image.
    """

    source: InstanceRef
    pixels: FloatArray
    spacing_mm: tuple[float, float] | None = None
    rendering: str = ""
    window: tuple[float, float] | None = None
    turned_from_source: int = 0
    inverted_from_source: bool = False
    left_right_verified: bool = True
