"""The values of an image, computed where and when they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from dicomnode.domain.frame import FloatArray
from dicomnode.imaging.codecs.process import StoredArray

Transformation = Callable[[FloatArray], FloatArray]
"""Maps (…) float32 to (…) float32, each element by itself, and leaves its argument as it is."""

Grid = tuple[slice, slice]
"""Which rows and columns of an image."""


def percentile(values: FloatArray, percent: float) -> float:
    """Return what `numpy.percentile` would, in a third of its time: NumPy picks one value much faster than several.

    `values`: at least one.
    """
    position = percent / 100 * (values.size - 1)
    rank = int(position)
    ordered = np.partition(values, rank, axis=None)
    low = ordered[rank]
    high = ordered[rank + 1 :].min() if rank + 1 < values.size else low
    return float(low) + float(high - low) * (position - rank)


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Stored samples, (rows, columns), and what makes values of exposure or density of them."""

    stored: StoredArray
    transformation: Transformation

    @property
    def shape(self) -> tuple[int, int]:
        """Return the image's rows and columns."""
        rows, columns = self.stored.shape
        return rows, columns

    def at(self, grid: Grid) -> FloatArray:
        """Return the values of some rows and columns."""
        return self._of(self.stored[grid])

    def through(self, further: Transformation) -> FloatArray:
        """Return the whole image's values after a further transformation, as an array of its own.

        It is asked once for each value there can be, and looked up for each sample: for five megapixels 1.5 ms
        instead of 3 with a window, and far less than with a logarithm, a table or a sigmoid.
        """
        if self.stored.dtype.kind not in "ui" or self.stored.size < np.iinfo(np.uint16).max:
            return np.asarray(further(self._of(self.stored)), dtype=np.float32)
        unsigned = np.dtype(f"u{self.stored.dtype.itemsize}")
        possible = np.arange(np.iinfo(unsigned).max + 1).astype(unsigned).view(self.stored.dtype)
        table = np.asarray(further(self._of(possible)), dtype=np.float32)
        return np.asarray(cv2.LUT(self.stored.view(unsigned), table), dtype=np.float32)

    def _of(self, stored: StoredArray) -> FloatArray:
        return np.asarray(self.transformation(stored.astype(np.float32)), dtype=np.float32)
