"""What a radiograph says of its grey scale: Modality LUT, VOI LUTs, windows, and which end is bright.

Source: PS3.3 C.11.1, C.11.2, C.8.11.3.1.2.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from dicomnode.dicom.attributes import integer, items, number, numbers, text, values

_MOST_ENTRIES = 1 << 16
_STEEPEST = 1e6
_PALETTES = ("Red", "Green", "Blue")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LookupTableItem:
    """A Modality or VOI LUT as it was sent. Source: PS3.3 C.11.1.1, C.11.2.1.1.

    `first`: the input that the first entry belongs to. `bits`: what the descriptor says of the entries, 1 to 16.
    `entries`: (n,) int32, read-only, 2 to 65,536 of them.
    """

    first: int
    bits: int
    entries: npt.NDArray[np.int32]
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One window. Source: PS3.3 C.11.2.1.2."""

    centre: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PaletteTags:
    """A palette: for red, green and blue the numbers of the descriptor, and the entries as they were sent.

    Source: PS3.3 C.7.6.3.1.5, C.7.9.2.
    """

    descriptors: tuple[tuple[int, ...], ...]
    entries: tuple[bytes, ...]
    segmented: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyscaleTags:
    """The grey scale that an object states.

    `rescale`: (slope, intercept), None unless both are numbers and the slope can be meant. `windows` and `voi_tables`:
    the alternatives that the object offers, in its order. `window_function`: "" is LINEAR.
    """

    modality_table: LookupTableItem | None
    rescale: tuple[float, float] | None
    voi_tables: tuple[LookupTableItem, ...]
    windows: tuple[Window, ...]
    window_function: str
    presentation_lut_shape: str
    intensity_relationship: str
    intensity_relationship_sign: int | None
    palette: PaletteTags | None


def greyscale_tags_of(ds: Dataset) -> GreyscaleTags:
    """Read the grey scale of an object, whatever is wrong in it."""
    tables = _tables(ds, "ModalityLUTSequence")
    function = text(ds, "VOILUTFunction").upper()
    return GreyscaleTags(
        modality_table=tables[0] if tables else None,
        rescale=_rescale(ds),
        voi_tables=_tables(ds, "VOILUTSequence"),
        windows=_windows(ds, function),
        window_function=function,
        presentation_lut_shape=text(ds, "PresentationLUTShape").upper(),
        intensity_relationship=text(ds, "PixelIntensityRelationship").upper(),
        intensity_relationship_sign=integer(ds, "PixelIntensityRelationshipSign"),
        palette=_palette(ds),
    )


def _rescale(ds: Dataset) -> tuple[float, float] | None:
    slope, intercept = number(ds, "RescaleSlope"), number(ds, "RescaleIntercept")
    if slope is None or intercept is None or not 1 / _STEEPEST <= abs(slope) <= _STEEPEST:
        return None
    return slope, intercept


def _windows(ds: Dataset, function: str) -> tuple[Window, ...]:
    """Return the windows that can be meant: LINEAR needs a width of at least 1, the other functions one above 0.

    Without as many widths as centres there are none. Source: PS3.3 C.11.2.1.2.
    """
    centres, widths = numbers(ds, "WindowCenter"), numbers(ds, "WindowWidth")
    least = 0.0 if function in ("LINEAR_EXACT", "SIGMOID") else 1.0
    if len(centres) != len(widths):
        return ()
    return tuple(
        Window(centre=centre, width=width)
        for centre, width in zip(centres, widths, strict=True)
        if width > 0 and width >= least and max(abs(centre), width) <= 1e9
    )


def _tables(ds: Dataset, keyword: str) -> tuple[LookupTableItem, ...]:
    # A table for signed input may have been written with an unsigned descriptor.
    signed = integer(ds, "PixelRepresentation") == 1 or (number(ds, "RescaleIntercept") or 0.0) < 0
    read = (_table(item, signed=signed) for item in items(ds, keyword))
    return tuple(table for table in read if table is not None)


def _table(item: Dataset, *, signed: bool) -> LookupTableItem | None:
    """Return a table; None when it has fewer entries than it says, or its descriptor makes no sense."""
    descriptor = numbers(item, "LUTDescriptor")
    if len(descriptor) != 3 or not all(-_MOST_ENTRIES < value < _MOST_ENTRIES for value in descriptor):
        return None
    count = (int(descriptor[0]) & 0xFFFF) or _MOST_ENTRIES
    entries = _entries(item, count)
    bits = int(descriptor[2])
    if not 2 <= entries.size == count or not 1 <= bits <= 16:
        return None
    return LookupTableItem(
        first=int(descriptor[1]) - (_MOST_ENTRIES if descriptor[1] >= _MOST_ENTRIES / 2 and signed else 0),
        bits=bits,
        entries=entries,
        explanation=text(item, "LUTExplanation")[:64],
    )


def _entries(item: Dataset, count: int) -> npt.NDArray[np.int32]:
    """Return up to `count` entries of LUT Data, which may be words, or bytes in a byte string."""
    found = values(item, "LUTData")
    if len(found) == 1 and isinstance(found[0], bytes | bytearray):
        raw = bytes(found[0])
        packed = len(raw) < 2 * count and len(raw) - len(raw) % 2 <= count + 1
        usable = raw if packed else raw[: len(raw) // 2 * 2]
        entries = np.frombuffer(usable, dtype="u1" if packed else "<u2")[:count].astype(np.int32)
    else:
        listed = [int(entry) for entry in found if isinstance(entry, int | float) and _is_word(entry)]
        entries = np.asarray(listed[:count], dtype=np.int32)
    entries.setflags(write=False)
    return entries


def _is_word(entry: float) -> bool:
    return math.isfinite(entry) and -_MOST_ENTRIES / 2 <= entry < _MOST_ENTRIES


def _palette(ds: Dataset) -> PaletteTags | None:
    descriptors = tuple(
        tuple(int(value) for value in numbers(ds, f"{colour}PaletteColorLookupTableDescriptor")) for colour in _PALETTES
    )
    if not all(len(descriptor) == 3 for descriptor in descriptors):
        return None
    for segmented, prefix in ((False, ""), (True, "Segmented")):
        entries = tuple(_raw(ds, f"{prefix}{colour}PaletteColorLookupTableData") for colour in _PALETTES)
        if all(entries):
            return PaletteTags(descriptors=descriptors, entries=entries, segmented=segmented)
    return None


def _raw(ds: Dataset, keyword: str) -> bytes:
    found = values(ds, keyword)
    return bytes(found[0]) if len(found) == 1 and isinstance(found[0], bytes | bytearray) else b""
