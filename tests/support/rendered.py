"""Small radiographs, rendered as the model gets them."""

import numpy as np
from pydicom import Dataset

from dicomnode.domain.frame import Frame
from dicomnode.imaging.pixels import render
from dicomnode.settings.node import PixelSettings
from tests.support.decoding import CODECS, radiograph_of
from tests.support.make import build

SETTINGS = PixelSettings()
ROWS, COLUMNS = 240, 200
FULL = (2048.0, 4096.0)


def made(kind: str = "cr", **options: object) -> Dataset:
    return build(kind, **{"rows": ROWS, "columns": COLUMNS, **options})


def frame(ds: Dataset, settings: PixelSettings = SETTINGS) -> Frame:
    return render(radiograph_of(ds), settings, CODECS)


def difference(one: Frame, other: Frame) -> float:
    return float(np.abs(one.pixels - other.pixels).max())
