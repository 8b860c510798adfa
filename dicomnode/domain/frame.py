"""A decoded radiograph on its way to the model."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dicomnode.domain.instance import InstanceRef

FloatArray = npt.NDArray[np.float32]

_OPPOSITE = str.maketrans("APRLHF", "PALRFH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Righting:
    """What stands an image upright: a mirroring of its columns, then quarter turns counter-clockwise.

    As of NumPy: `rot90(fliplr(pixels) if mirrored else pixels, quarter_turns)`.
    """

    mirrored: bool
    quarter_turns: int

    def orientation(self, row: str, column: str) -> tuple[str, str]:
        """Return the Patient Orientation (row, column) of the image after the righting. Source: PS3.3 C.7.6.1.1.1."""
        if self.mirrored:
            row = row.translate(_OPPOSITE)
        for _ in range(self.quarter_turns % 4):
            row, column = column, row.translate(_OPPOSITE)
        return row, column


def righting_of(orientation: tuple[str, str]) -> Righting | None:
    """Return what stands a frontal image upright by its Patient Orientation: rows to the left, columns to the feet.

    The first letter of each direction counts. None where these are not one of left and right, and one of head and
    feet: such an orientation is of no frontal image, or makes no sense. Source: PS3.3 C.7.6.1.1.1.
    """
    row, column = (direction[:1] for direction in orientation)
    for mirrored in (False, True):
        for quarter_turns in range(4):
            righting = Righting(mirrored=mirrored, quarter_turns=quarter_turns)
            if righting.orientation(row, column) == ("L", "F"):
                return righting
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One radiograph as it should be looked at.

    `pixels`: (rows, columns) float32 in [0, 1], read-only; 1 is bright, that is dense tissue (MONOCHROME2 sense).
    `spacing_mm`: (row, column) distance, or None when the object states none.
    `window`: the modality values that became 0 and 1, where the node had to choose them itself.
    `mirrored_from_source`, then `turned_from_source`: whether the columns of the stored pixel matrix were mirrored, and
    the quarter turns counter-clockwise, as of `Righting`, that took it to `pixels`; `inverted_from_source`: whether the
    grey scale was also inverted. They are False and 0 unless the node repaired the image.
    `left_right_verified`: False after a repair that may have left a mirror image.
    """

    source: InstanceRef
    pixels: FloatArray
    spacing_mm: tuple[float, float] | None = None
    rendering: str = ""
    window: tuple[float, float] | None = None
    turned_from_source: int = 0
    inverted_from_source: bool = False
    mirrored_from_source: bool = False
    left_right_verified: bool = True
