"""From pixel data to one `Frame`, bright where the patient is dense, whatever the device made of it."""

import logging
import math

import numpy as np

from dicomnode.dicom.header import Radiograph, RadiographHeader
from dicomnode.dicom.hostile import HOSTILE_DATA_RAISES, quiet
from dicomnode.domain.errors import UndecodablePixels
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.imaging import area, greyscale
from dicomnode.imaging.area import BoolArray
from dicomnode.imaging.codecs.process import CodecProcess, StoredArray
from dicomnode.imaging.decoding import PixelLayout, decode, read_layout
from dicomnode.imaging.greyscale import GreyScale
from dicomnode.imaging.values import Grid, Transformation, Values
from dicomnode.settings.node import PixelSettings

log = logging.getLogger(__name__)

_SAMPLE = 400_000
_MARGIN = 8


def render(radiograph: Radiograph, settings: PixelSettings, codecs: CodecProcess) -> Frame:
    """Decode the radiograph and bring it to the grey scale it should be looked at in.

    Order: limits, decoding, padding, Modality LUT, VOI LUT or window (or what replaces a useless one), inversion.
    Padding and what a shutter hides come out black.
    Raises: UndecodablePixels, DecoderUnavailable.
    """
    header = radiograph.header
    layout = read_layout(header, settings.maximum_pixels)
    decoded = decode(radiograph, layout, codecs)
    with quiet(), np.errstate(all="ignore"):
        try:
            pixels, scale = _brightness(header, decoded.stored, decoded.layout, settings)
        except HOSTILE_DATA_RAISES as error:
            log.warning("grey-scale-not-computed", extra={"error": type(error).__name__})
            raise UndecodablePixels("the grey scale cannot be computed") from None
    pixels.setflags(write=False)
    spacing = header.pixel_spacing or header.detector_spacing
    return Frame(
        source=header.ref,
        pixels=pixels,
        spacing_mm=None if spacing is None else (spacing.row_mm, spacing.column_mm),
        rendering=scale.name,
        window=scale.window,
    )


def _brightness(
    header: RadiographHeader, stored: StoredArray, layout: PixelLayout, settings: PixelSettings
) -> tuple[FloatArray, GreyScale]:
    tags = header.greyscale
    excluded = _union(area.padding(header.pixels, stored, layout), area.outside(header.shutter, layout))
    modality = greyscale.modality(tags)
    linear = header.exposure.for_processing and tags.intensity_relationship == "LIN"
    values = Values(stored, (lambda inputs: greyscale.logarithm(modality(inputs))) if linear else modality)
    # What is only estimated is estimated on every n-th row and column: of five megapixels in 5 ms instead of 20.
    thin = _thinning(stored)
    collimated = area.outside(header.collimator, layout)
    sample, centre = _samples(values.at(thin), area.content(values, excluded, collimated, thin))
    # A window is in units of exposure: after the logarithm it means nothing.
    chosen = None if linear else greyscale.choose(tags, _whole_scale(modality, layout), centre)
    chosen = chosen or greyscale.percentile_window(sample, settings)
    shown = chosen.apply
    inverted = _dense_is_low(header, layout)
    pixels = values.through((lambda inputs: np.float32(1) - shown(inputs)) if inverted else shown)
    if excluded is not None:
        pixels[excluded] = 0.0
    if linear:
        chosen = GreyScale(name=f"log-{chosen.name}", apply=chosen.apply)
    return pixels, chosen


def _thinning(stored: StoredArray) -> Grid:
    step = max(1, math.ceil(math.sqrt(stored.size / _SAMPLE)))
    return slice(None, None, step), slice(None, None, step)


def _samples(thin: FloatArray, where: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return values from inside the radiograph: of the whole, and of the middle three quarters each way."""
    rows, columns = thin.shape[0] // _MARGIN, thin.shape[1] // _MARGIN
    middle = (slice(rows, thin.shape[0] - rows), slice(columns, thin.shape[1] - columns))
    sample, centre = thin[where], thin[middle][where[middle]]
    if not sample.size:
        sample = thin.ravel()
    return sample, centre if centre.size else sample


def _whole_scale(modality: Transformation, layout: PixelLayout) -> tuple[float, float] | None:
    """Return the modality values of the ends of the stored scale for renderings of up to 8 bits, else None."""
    if layout.bits_stored > 8:
        return None
    ends = modality(np.asarray(layout.stored_range, dtype=np.float32))
    return float(ends[0]), float(ends[1])


def _dense_is_low(header: RadiographHeader, layout: PixelLayout) -> bool:
    """Tell whether dense tissue has low values, so that the grey scale must be inverted.

    Objects for presentation say it by MONOCHROME1 or Presentation LUT Shape INVERSE, which mean the same and come
    together (PS3.3 C.8.11.3.1.2). In objects for processing the sign of the pixel intensity relationship says how
    values follow the exposure (C.8.11.3.1.2): -1 is higher values where fewer X-rays arrive.
    """
    tags = header.greyscale
    sign = tags.intensity_relationship_sign if header.exposure.for_processing else None
    if sign in (-1, 1):
        return sign == 1
    return layout.photometric == "MONOCHROME1" or tags.presentation_lut_shape == "INVERSE"


def _union(first: BoolArray | None, second: BoolArray | None) -> BoolArray | None:
    if first is None or second is None:
        return first if second is None else second
    return first | second
