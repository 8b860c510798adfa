"""The source image's own grey scale, so that a presentation state shows it as the image alone is shown.

A presentation state replaces the transformations of the image it refers to; what it leaves out is not applied.
Source: PS3.4 N.2.1; PS3.3 C.11.1, C.11.2, C.11.6.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicomnode.dicom.greyscale import GreyscaleTags, LookupTableItem
from dicomnode.dicom.header import RadiographHeader

_FUNCTIONS = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})
_MOST_ENTRIES = 65536
_HIGHEST = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Greyscale:
    """Attributes of the source's Modality LUT and VOI LUT, empty where it states none that is well formed.

    `inverse`: its lowest values are the bright ones.
    """

    modality: Dataset
    voi: Dataset
    inverse: bool


def greyscale_of(header: RadiographHeader) -> Greyscale:
    """Return the grey scale of a source in the attributes of a presentation state."""
    tags = header.greyscale
    return Greyscale(
        modality=_modality(tags),
        voi=_voi(tags),
        inverse=(header.pixels.photometric_interpretation == "MONOCHROME1" or tags.presentation_lut_shape == "INVERSE"),
    )


def _modality(tags: GreyscaleTags) -> Dataset:
    ds = Dataset()
    table = _table(tags.modality_table, full_scale=False) if tags.modality_table else None
    if table is not None:
        table.ModalityLUTType = "US"  # unspecified: projection radiographs have no other units
        ds.ModalityLUTSequence = [table]
    elif tags.rescale is not None:
        slope, intercept = tags.rescale
        ds.RescaleIntercept, ds.RescaleSlope = _decimals((intercept, slope))
        ds.RescaleType = "US"
    return ds


def _voi(tags: GreyscaleTags) -> Dataset:
    """Return the VOI LUTs and windows, all alternatives that the source offers."""
    ds = Dataset()
    tables = [made for table in tags.voi_tables if (made := _table(table, full_scale=True)) is not None]
    if tables:
        ds.VOILUTSequence = tables
    if tags.windows:
        ds.WindowCenter = _decimals(window.centre for window in tags.windows)
        ds.WindowWidth = _decimals(window.width for window in tags.windows)
        if tags.window_function in _FUNCTIONS:
            ds.VOILUTFunction = tags.window_function
    return ds


def _decimals(values: Iterable[float]) -> list[str]:
    """Return decimal strings of at most 16 characters (DS)."""
    return [f"{value:.9g}" for value in values]


def _table(table: LookupTableItem, *, full_scale: bool) -> Dataset | None:
    """Return a lookup table of 16 bits an entry; None when it cannot be written as one.

    Tables are found of 8 to 16 bits, but in presentation states validators know 8 and 16 only. Of `full_scale`, the
    entries are parts of what their bits can hold, and grow with them; else they are values, and stay.
    """
    signed, count = table.first < 0, len(table.entries)
    if not 8 <= table.bits <= 16 or (signed and count > np.iinfo(np.int16).max):
        return None
    ds = Dataset()
    ds.add_new("LUTDescriptor", "SS" if signed else "US", [count % _MOST_ENTRIES, table.first, 16])
    if table.explanation:
        ds.LUTExplanation = table.explanation
    top = 2**table.bits - 1
    entries = table.entries.astype(np.int64)
    if full_scale:
        entries = np.minimum(entries, top) * _HIGHEST // top
    ds.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return ds
