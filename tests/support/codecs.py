"""Frames for the process of the codecs, and what is seen of it from outside."""

import numpy as np
from pydicom import Dataset
from pydicom import uid as uids

from dicomnode.dicom import reader
from dicomnode.imaging.codecs.process import CodecProcess
from tests.conftest import ROOT
from tests.support.decoding import stored_values
from tests.support.make import build, chest, encode, stored, with_frame

ROWS, COLUMNS = 96, 80
GOOD = reader.read(encode(build("cr", rows=ROWS, columns=COLUMNS), uids.JPEG2000Lossless))
EXPECTED = stored(chest(ROWS, COLUMNS), bits=12)
ABORTS = with_frame(
    build("cr", rows=24, columns=16), (ROOT / "tests/data/aborts-gdcm.jpg").read_bytes(), uids.JPEGLosslessSV1
)
"""A JPEG Lossless frame of which six bytes were changed: GDCM calls abort()."""


def decoded(ds: Dataset, codecs: CodecProcess) -> np.ndarray:
    return stored_values(ds, codecs)
