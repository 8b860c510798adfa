"""From stored values to brightness: Modality LUT, VOI LUT or window, or a percentile window where those are useless."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dicomnode.dicom.greyscale import GreyscaleTags, LookupTableItem
from dicomnode.domain.frame import FloatArray
from dicomnode.imaging.values import Transformation, percentile
from dicomnode.settings.node import PixelSettings

# Of 1,500 of NIH's renderings, 99 % have no more than 3 % of their centre within 3/255 of black and none of it within
# 3/255 of white, and all spread their centre over at least 0.28 of the grey scale.
_NEAR_END = 3 / 255
_MOST_CLIPPED = 0.05
_LEAST_SPREAD = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyScale:
    """A transformation of modality values to [0, 1], and what it is called in `Frame.rendering`.

    `window`: the values that become 0 and 1, where the object itself does not state them.
    """

    name: str
    apply: Transformation
    window: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupTable:
    """A table whose first entry belongs to the input `first`.

    `tops`: what may be its greatest output, by the bits that it claims and by those that its entries need. Agfa claims
    16 bits and fills 12.
    """

    first: int
    entries: FloatArray
    tops: tuple[float, ...]

    def look_up(self, inputs: FloatArray) -> FloatArray:
        """Return the entries of rounded inputs; beyond its ends the table is constant. Source: PS3.3 C.11.1.1.1."""
        index = np.clip(np.rint(inputs) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        return np.asarray(self.entries[index], dtype=np.float32)


def modality(tags: GreyscaleTags) -> Transformation:
    """Return the Modality LUT: a table, a rescale, or the identity. Source: PS3.3 C.11.1."""
    if tags.modality_table is not None:
        return _table(tags.modality_table).look_up
    if tags.rescale is None:
        return _identity
    slope, intercept = tags.rescale
    factor, offset = np.float32(slope), np.float32(np.clip(intercept, -1e9, 1e9))
    return lambda inputs: np.asarray(inputs * factor + offset, dtype=np.float32)


def choose(tags: GreyscaleTags, whole: tuple[float, float] | None, centre: FloatArray) -> GreyScale | None:
    """Return the first of the object's own transformations that is fit to look at, or None.

    They are asked in the order VOI LUT, window, and for renderings of up to 8 bits the `whole` scale as stored.
    `centre`: modality values of the radiograph in the middle of the image.
    """
    return next((one for one in _own(tags, whole) if is_fit(one.apply(centre))), None)


def is_fit(brightness: FloatArray) -> bool:
    """Tell whether a rendering shows the image: what it clips and how far it spreads decides.

    `brightness`: the centre of the image, where the anatomy is, in [0, 1]. It is unfit when more than 5 % lies within
    3/255 of black or more than 5 % within 3/255 of white, or when the middle 98 % spread over less than a quarter of
    the grey scale. Windows that sensible devices and NIH's renderings use keep within this with a margin.
    """
    if brightness.size == 0:
        return False
    low, high = percentile(brightness, 1), percentile(brightness, 99)
    clipped = max(float(np.mean(brightness <= _NEAR_END)), float(np.mean(brightness >= 1 - _NEAR_END)))
    return bool(clipped <= _MOST_CLIPPED and high - low >= _LEAST_SPREAD)


def percentile_window(sample: FloatArray, settings: PixelSettings) -> GreyScale:
    """Return the straight line that takes the sample's low percentile to black and its high one to white.

    With the default 0.5 and 99.5 it clips at most 0.9 % at either end of the central 56 % of the image, less than
    `bundle.preprocess` does there: whatever straight line a device chose, the model's input stays the same.
    """
    low, high = percentile(sample, settings.low_percentile), percentile(sample, settings.high_percentile)
    return GreyScale(name="percentile", apply=_line(low, high), window=(low, high))


def logarithm(inputs: FloatArray) -> FloatArray:
    """Return the logarithm of values proportional to exposure, so that equal thickness is an equal step."""
    return np.asarray(np.log(np.maximum(inputs, 1.0)), dtype=np.float32)


def _own(tags: GreyscaleTags, whole: tuple[float, float] | None) -> Iterator[GreyScale]:
    for item in tags.voi_tables[:1]:
        table = _table(item)
        for top in table.tops:
            yield GreyScale(name="voi-lut-sequence", apply=_scaled(table, top))
    for window in tags.windows[:1]:
        yield _window(window.centre, window.width, tags.window_function)
    if whole is not None and whole[0] < whole[1]:
        yield GreyScale(name="as-stored", apply=_line(*whole))


def _table(item: LookupTableItem) -> LookupTable:
    entries = item.entries.astype(np.float32)
    return LookupTable(first=item.first, entries=entries, tops=_tops(entries, item.bits))


def _tops(entries: FloatArray, bits: int) -> tuple[float, ...]:
    greatest = float(entries.max())
    claimed, needed = float((1 << bits) - 1), float((1 << int(greatest).bit_length()) - 1)
    return (claimed, needed) if needed < claimed else (max(claimed, greatest),)


def _scaled(table: LookupTable, top: float) -> Transformation:
    span = np.float32(top)
    return lambda inputs: table.look_up(inputs) / span


def _window(centre: float, width: float, function: str) -> GreyScale:
    """Return a window. Source: PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return GreyScale(name="window-sigmoid", apply=_sigmoid(centre, width))
    if function == "LINEAR_EXACT":
        return GreyScale(name="window-linear-exact", apply=_line(centre - width / 2, centre + width / 2))
    return GreyScale(name="window-linear", apply=_line(centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2))


def _line(low: float, high: float) -> Transformation:
    """Return the line through (low, 0) and (high, 1), cut at both; a step at `low` when they are the same."""
    if not high > low:
        return lambda inputs: np.asarray(inputs > np.float32(low), dtype=np.float32)
    offset, factor = np.float32(low), np.float32(1 / (high - low))

    def apply(inputs: FloatArray) -> FloatArray:
        # In one array: half the time that three take.
        brightness = np.asarray(inputs - offset, dtype=np.float32)
        np.multiply(brightness, factor, out=brightness)
        return np.clip(brightness, 0.0, 1.0, out=brightness)

    return apply


def _sigmoid(centre: float, width: float) -> Transformation:
    def apply(inputs: FloatArray) -> FloatArray:
        exponent = np.clip(-4 * (inputs - np.float32(centre)) / np.float32(width), -80, 80)
        return np.asarray(1 / (1 + np.exp(exponent)), dtype=np.float32)

    return apply


def _identity(inputs: FloatArray) -> FloatArray:
    return inputs
