"""The codec process that the tests of one run share, and data sets read as received objects are."""

from pydicom import Dataset

from dicomnode.dicom.header import Radiograph, header_of, pixel_data_of
from dicomnode.imaging.codecs.process import CodecProcess, StoredArray
from dicomnode.imaging.decoding import Decoded, decode, read_layout

CODECS = CodecProcess()
"""Started with the first compressed frame, ended with the tests."""


def radiograph_of(ds: Dataset) -> Radiograph:
    """Return a data set as a received object."""
    return Radiograph(header=header_of(ds), pixel_data=pixel_data_of(ds))


def decoded(ds: Dataset, codecs: CodecProcess = CODECS, *, maximum_pixels: int = 10_000_000) -> Decoded:
    """Return the stored values of a data set, with the layout they have."""
    radiograph = radiograph_of(ds)
    return decode(radiograph, read_layout(radiograph.header, maximum_pixels), codecs)


def stored_values(ds: Dataset, codecs: CodecProcess = CODECS, *, maximum_pixels: int = 10_000_000) -> StoredArray:
    """Return the stored values of a data set."""
    return decoded(ds, codecs, maximum_pixels=maximum_pixels).stored
