"""The source image's own grey scale, so that a presentation state shows it as the image alone is shown.

A presentation state replaces the transformations of the image it refers to; what it leaves out is not applied.
Source: PS3.4 N.2.1; PS3.3 C.11.1, C.11.2, C.11.6.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicomnode.dicom import wild

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


def greyscale_of(ds: Dataset) -> Greyscale:
    """Read the grey scale of a source, whatever is wrong in it."""
    return Greyscale(
        modality=_modality(ds),
        voi=_voi(ds),
        inverse=(
            wild.code_string(ds, "PhotometricInterpretation") == "MONOCHROME1"
            or wild.code_string(ds, "PresentationLUTShape") == "INVERSE"
        ),
    )


def _modality(ds: Dataset) -> Dataset:
    found = Dataset()
    tables = _tables(ds, "ModalityLUTSequence", full_scale=False)
    slope, intercept = wild.numbers(ds, "RescaleSlope"), wild.numbers(ds, "RescaleIntercept")
    if tables:
        tables[0].ModalityLUTType = "US"  # unspecified: projection radiographs have no other units
        found.ModalityLUTSequence = tables[:1]
    elif len(slope) == len(intercept) == 1 and slope[0] != 0:
        found.RescaleIntercept, found.RescaleSlope = _decimals(intercept)[0], _decimals(slope)[0]
        found.RescaleType = "US"
    return found


def _voi(ds: Dataset) -> Dataset:
    """Return the VOI LUTs and windows, all alternatives that the source offers."""
    found = Dataset()
    tables = _tables(ds, "VOILUTSequence", full_scale=True)
    if tables:
        found.VOILUTSequence = tables
    centres, widths = wild.numbers(ds, "WindowCenter"), wild.numbers(ds, "WindowWidth")
    if centres and len(centres) == len(widths) and all(width >= 1 for width in widths):
        found.WindowCenter, found.WindowWidth = _decimals(centres), _decimals(widths)
        function = wild.code_string(ds, "VOILUTFunction")
        if function in _FUNCTIONS:
            found.VOILUTFunction = function
    return found


def _decimals(values: list[float]) -> list[str]:
    """Return decimal strings of at most 16 characters (DS)."""
    return [f"{value:.9g}" for value in values]


def _tables(ds: Dataset, keyword: str, *, full_scale: bool) -> list[Dataset]:
    sequence = ds.get(keyword)
    items = sequence if isinstance(sequence, Iterable) else []
    read = (_table(item, full_scale=full_scale) for item in items if isinstance(item, Dataset))
    return [table for table in read if table is not None]


def _table(item: Dataset, *, full_scale: bool) -> Dataset | None:
    """Return a lookup table of 16 bits an entry; None when it is not well formed.

    Tables are found of 8 to 16 bits, but in presentation states validators know 8 and 16 only. Of `full_scale`, the
    entries are parts of what their bits can hold, and grow with them; else they are values, and stay.
    """
    descriptor = _integers(item, "LUTDescriptor")
    if len(descriptor) != 3:
        return None
    count, first, bits = descriptor
    count = count or _MOST_ENTRIES
    entries = _integers(item, "LUTData", packed=bits <= 8, count=count)
    signed = first < 0
    if not (8 <= bits <= 16 and 0 < count <= len(entries)) or (signed and count > np.iinfo(np.int16).max):
        return None
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if signed else "US", [count % _MOST_ENTRIES, first, 16])
    explanation = wild.text(item, "LUTExplanation")[:64]
    if explanation:
        table.LUTExplanation = explanation
    top = 2**bits - 1
    values = np.asarray(entries[:count], dtype=np.int64)
    if full_scale:
        values = np.minimum(values, top) * _HIGHEST // top
    table.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return table


def _integers(item: Dataset, keyword: str, *, packed: bool = False, count: int = 0) -> list[int]:
    """Return whole numbers of 16 bits; `packed` bytes that hold `count` of 8 bits each are those."""
    value = item.get(keyword)
    if isinstance(value, bytes):
        as_bytes = packed and len(value) < 2 * count
        usable = value if as_bytes else value[: len(value) // 2 * 2]
        return [int(entry) for entry in np.frombuffer(usable, dtype="u1" if as_bytes else "<u2")]
    numbers = wild.numbers(item, keyword)
    return [int(entry) for entry in numbers if -32768 <= entry < _MOST_ENTRIES]
