"""Pictures for the page: the radiograph as the model read it, and the heat of findings above threshold.

Maps are not stored: the model in use makes them again, so they are shown only for answers of that model. One picture is
made at a time, so that visitors of the page do not slow down the analysis.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt
from pydicom import dcmread

from dicomnode.analysis.examination import AnalysedImage
from dicomnode.analysis.pipeline import Pipeline
from dicomnode.dicom.header import read_radiograph
from dicomnode.domain.errors import UndecodablePixels, UnreadableObject
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.instance import StoredInstance
from dicomnode.imaging.pixels import render
from dicomnode.inference.operating import findings_of
from dicomnode.results.body import BoolArray, body_mask, onto
from dicomnode.results.overlay import heat_colours
from dicomnode.results.presentation import Note, heat_of, notes_on, orientation_of, with_heat

_LONGEST_SIDE, _HEAT_SIDE, _CAPTURE_SIDE = 1280, 512, 1600
_KEPT = 12
_OPAQUE = 1.0
_NOWHERE: BoolArray = np.zeros((1, 1), dtype=bool)

Pixels = TypeVar("Pixels", bound=npt.NDArray[Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedImage:
    """One image as it is shown.

    `png` is empty where it cannot be decoded. `maps` by label: of what has heat by the rules of
    `dicomnode.results.presentation`, none where the model did not read the image. `body`: where heat may be. `notes`:
    what to know of the image.
    """

    png: bytes
    rows: int
    columns: int
    maps: Mapping[str, FloatArray]
    body: BoolArray
    notes: tuple[Note, ...]
    may_name_patient: bool


class Gallery:
    """Makes pictures, and keeps the last few."""

    def __init__(self, pipeline: Pipeline, read_bytes: Callable[[StoredInstance], bytes]) -> None:
        """`read_bytes` gives the Part 10 bytes of a received image."""
        self._pipeline, self._read_bytes = pipeline, read_bytes
        self._kept: OrderedDict[str, RenderedImage] = OrderedDict()
        self._one_at_a_time = threading.Lock()

    def rendered(self, instance: StoredInstance) -> RenderedImage:
        """Return an image as it is shown.

        Raises: BlobDamaged, StoreUnavailable, DecoderUnavailable.
        """
        with self._one_at_a_time:
            found = self._kept.pop(instance.blob, None) or self._make(instance)
            self._kept[instance.blob] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def _make(self, instance: StoredInstance) -> RenderedImage:
        part10 = self._read_bytes(instance)
        examined = self._pipeline.examine(instance, part10)
        try:
            radiograph = read_radiograph(part10)
            # Burned-in text is known from the sender only. An image that was converted from another form is taken to
            # have some unless the sender says NO.
            header = radiograph.header
            annotated = header.burned_in_annotation
            named = annotated == "YES" or (annotated != "NO" and header.conversion_type != "")
            if isinstance(examined, AnalysedImage):
                pixels = examined.frame.pixels
            else:
                pixels = render(radiograph, self._pipeline.pixels, self._pipeline.codecs).pixels
        except (UnreadableObject, UndecodablePixels):
            return RenderedImage(png=b"", rows=0, columns=0, maps={}, body=_NOWHERE, notes=(), may_name_patient=False)
        body = body_mask(pixels) if isinstance(examined, AnalysedImage) else _NOWHERE
        shown = np.round(_reduced(pixels, _LONGEST_SIDE) * 255).astype(np.uint8)
        rows, columns = shown.shape
        return RenderedImage(
            png=_png(shown),
            rows=rows,
            columns=columns,
            maps=self._maps(examined, body) if isinstance(examined, AnalysedImage) else {},
            body=body,
            notes=_notes(examined) if isinstance(examined, AnalysedImage) else (),
            may_name_patient=named,
        )

    def _maps(self, examined: AnalysedImage, body: BoolArray) -> dict[str, FloatArray]:
        """Return the maps of what has heat on the body."""
        scores, point = examined.reading.scores, self._pipeline.operating_point
        abnormality, *findings = findings_of(scores, self._pipeline.manifest, point)
        labels = {finding.label for finding in with_heat(abnormality, findings)}
        maps = {entry.label: entry.values for entry in examined.reading.saliency if entry.label in labels}
        return {label: values for label, values in maps.items() if heat_of(values, body.shape, body) is not None}


def _notes(examined: AnalysedImage) -> tuple[Note, ...]:
    """Return what to know of an image; the answer's summary says whether it is unusual."""
    orientation = orientation_of(examined.frame, examined.context)
    return notes_on(examined.frame, orientation, is_unusual=False)


def heat_png(image: RenderedImage, label: str) -> bytes | None:
    """Return a finding's heat as colours that are clear where it is low; None without a map or heat on the body."""
    values = image.maps.get(label)
    scale = _HEAT_SIDE / max(image.rows, image.columns, 1)
    shape = (max(1, round(image.rows * scale)), max(1, round(image.columns * scale)))
    heat = None if values is None else heat_of(values, shape, image.body)
    if heat is None:
        return None
    colours, alpha = heat_colours(heat.values, _OPAQUE)
    alpha *= onto(image.body, shape)
    return _png(np.dstack([cv2.cvtColor(colours, cv2.COLOR_RGB2BGR), cv2.convertScaleAbs(alpha, alpha=255.0)]))


def capture_png(part10: bytes) -> bytes | None:
    """Return a Secondary Capture of this node as a picture; None if it is no such thing."""
    dataset = dcmread(BytesIO(part10))
    pixels = dataset.pixel_array
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        return None
    return _png(cv2.cvtColor(_reduced(pixels, _CAPTURE_SIDE), cv2.COLOR_RGB2BGR))


def _reduced(pixels: Pixels, side: int) -> Pixels:
    """Return pixels, grey or coloured, of which neither side is longer than `side`."""
    scale = side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    rows, columns = (max(1, round(length * scale)) for length in pixels.shape[:2])
    return cast("Pixels", cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA))


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])
