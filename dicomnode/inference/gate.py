"""The pixel gate: whatever the tags say, the image must be an upright frontal chest radiograph as the model knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from dicomnode.bundle.manifest import GateSpec
from dicomnode.domain.frame import FloatArray, Frame, Righting
from dicomnode.inference.framing import windows_of
from dicomnode.inference.predictor import Reading

UPRIGHT = "upright"
_INVERTED = "inverted-"
_AS_IT_IS = Righting(mirrored=False, quarter_turns=0)
_STRICTER = 0.81
"""How much more typical than a whole image a window of it must be, since the best of some thirty windows counts.

Measured on 26 laterals and 502 hand radiographs, CT and MR slices, with the gate of the bundles 0.2.0 and 0.3.0: up to
a distance of 2.2 no window of them passes, at 2.28 that of the first lateral would.
"""
_UPRIGHT_WINDOW = 0.9
_BATCH = 4
"""Windows that are read at once: more would take memory and no less time."""
_TURNS = {"upright": 0, "rot90": 1, "rot180": 2, "rot270": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Typical:
    """The image may be read as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """The image is certainly turned or inverted; applying `quarter_turns` (as `numpy.rot90`) and `invert` rights it."""

    quarter_turns: int
    invert: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubtful:
    """The image may be turned or inverted, but not certainly enough to repair it."""

    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Atypical:
    """The image is unlike the frontal chest radiographs of the training data."""

    typicality: float
    threshold: float


GateVerdict = Typical | Turned | Doubtful | Atypical


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFrame:
    """A frame as it was read, what the model gave, and the gate's verdict.

    `is_unusual`: the image is far from the training data, so that its probabilities are less reliable.
    """

    frame: Frame
    reading: Reading
    verdict: GateVerdict
    is_unusual: bool = False


class FrameReader(Protocol):
    """What reads frames; `Predictor` does."""

    def read(self, frame: Frame) -> Reading:
        """Run the ensemble on one frame."""
        ...

    def read_batch(self, radiographs: Sequence[FloatArray]) -> tuple[Reading, ...]:
        """Run the ensemble on several radiographs at once."""
        ...


def read_upright(reader: FrameReader, frame: Frame, spec: GateSpec, righting: Righting | None = None) -> JudgedFrame:
    """Read a frame that is righted first, if need be, and judge it.

    `righting`: what stands the image upright by its Patient Orientation, None where that says nothing. It is followed
    where the pixels agree: then left and right are known. Where only the pixels tell of a turn, the image may be a
    mirror image as well, since no pixel says for certain on which side the heart belongs; then they are not verified.
    An image that is unlike the training data as a whole is judged a second time by what was exposed of it.
    """
    attempts = _righted_by_tags(reader, frame, spec, righting) or _righted_by_pixels(reader, frame, spec, righting)
    judged = attempts[-1]
    if isinstance(judged.verdict, Typical):
        return replace(judged, is_unusual=is_unusual(judged.reading, spec))
    by_window = (_judged_by_window(reader, attempt, spec) for attempt in attempts)
    return next((found for found in by_window if found is not None), judged)


def _righted_by_tags(
    reader: FrameReader, frame: Frame, spec: GateSpec, righting: Righting | None
) -> tuple[JudgedFrame, ...]:
    """Right the frame as its Patient Orientation says; nothing where it says nothing to do, or the pixels disagree."""
    if righting is None or righting == _AS_IT_IS:
        return ()
    judged = _judge(reader, right(frame, righting), spec)
    seen = spec.orientations[int(np.argmax(judged.reading.orientation))]
    return _righted_once(reader, judged, spec) if seen.removeprefix(_INVERTED) == UPRIGHT else ()


def _righted_by_pixels(
    reader: FrameReader, frame: Frame, spec: GateSpec, righting: Righting | None
) -> tuple[JudgedFrame, ...]:
    if righting is not None and righting != _AS_IT_IS:
        frame = replace(frame, left_right_verified=False)
    return _righted_once(reader, _judge(reader, frame, spec), spec)


def _righted_once(reader: FrameReader, judged: JudgedFrame, spec: GateSpec) -> tuple[JudgedFrame, ...]:
    """Return the frame, and behind it the one that is righted where its pixels are certainly turned or inverted."""
    if not isinstance(judged.verdict, Turned):
        return (judged,)
    return judged, _judge(reader, repair(judged.frame, judged.verdict), spec)


def _judge(reader: FrameReader, frame: Frame, spec: GateSpec) -> JudgedFrame:
    reading = reader.read(frame)
    return JudgedFrame(frame=frame, reading=reading, verdict=judge_pixels(reading, spec))


def _judged_by_window(reader: FrameReader, judged: JudgedFrame, spec: GateSpec) -> JudgedFrame | None:
    """Read the window of the frame that is most like the training data, if one is; its maps lie on the whole frame.

    A frame around the image may make the whole look turned, so this is asked before and after it is righted.
    """
    pixels = judged.frame.pixels
    windows = windows_of(pixels)
    batches = (windows[at : at + _BATCH] for at in range(0, len(windows), _BATCH))
    readings = [one for batch in batches for one in reader.read_batch([window.of(pixels) for window in batch])]
    upright = spec.orientations.index(UPRIGHT)
    limit = _STRICTER * spec.typicality_threshold
    fit = [
        (reading.typicality, at)
        for at, reading in enumerate(readings)
        if reading.typicality <= limit and reading.orientation[upright] >= _UPRIGHT_WINDOW
    ]
    if not fit:
        return None
    window, reading = windows[min(fit)[1]], readings[min(fit)[1]]
    saliency = tuple(window.onto_frame(one, pixels.shape) for one in reading.saliency)
    return replace(judged, reading=replace(reading, saliency=saliency), verdict=Typical(), is_unusual=True)


def right(frame: Frame, righting: Righting) -> Frame:
    """Return a frame as it comes from the source, mirrored and turned, remembering what was done to it."""
    pixels = np.fliplr(frame.pixels) if righting.mirrored else frame.pixels
    pixels = np.ascontiguousarray(np.rot90(pixels, righting.quarter_turns), dtype=np.float32)
    pixels.setflags(write=False)
    spacing = frame.spacing_mm
    if spacing is not None and righting.quarter_turns % 2:
        spacing = (spacing[1], spacing[0])
    return replace(
        frame,
        pixels=pixels,
        spacing_mm=spacing,
        turned_from_source=righting.quarter_turns % 4,
        mirrored_from_source=righting.mirrored,
    )


def judge_pixels(reading: Reading, spec: GateSpec) -> GateVerdict:
    """Judge one reading by the bundle's thresholds.

    Orientation comes first: a turned chest is atypical too, and can be righted.
    """
    best = int(np.argmax(reading.orientation))
    name, probability = spec.orientations[best], float(reading.orientation[best])
    if name != UPRIGHT and probability >= spec.certain:
        turned = _TURNS[name.removeprefix(_INVERTED)]
        return Turned(quarter_turns=(4 - turned) % 4, invert=name.startswith(_INVERTED))
    if reading.typicality > spec.typicality_threshold:
        return Atypical(typicality=reading.typicality, threshold=spec.typicality_threshold)
    if name != UPRIGHT:
        return Doubtful(probability=probability)
    return Typical()


def is_unusual(reading: Reading, spec: GateSpec) -> bool:
    """Tell whether an image that passes the gate is farther from the training images than most of them."""
    return spec.unusual_threshold is not None and reading.typicality > spec.unusual_threshold


def repair(frame: Frame, verdict: Turned) -> Frame:
    """Return the frame righted, remembering what was done to it.

    A turn that the pixels ask for may leave a mirror image, so left and right are not verified after it.
    """
    pixels = np.rot90(frame.pixels, verdict.quarter_turns)
    pixels = np.ascontiguousarray(1.0 - pixels if verdict.invert else pixels, dtype=np.float32)
    pixels.setflags(write=False)
    spacing = frame.spacing_mm
    if spacing is not None and verdict.quarter_turns % 2:
        spacing = (spacing[1], spacing[0])
    return replace(
        frame,
        pixels=pixels,
        spacing_mm=spacing,
        turned_from_source=(frame.turned_from_source + verdict.quarter_turns) % 4,
        inverted_from_source=frame.inverted_from_source != verdict.invert,
        left_right_verified=frame.left_right_verified and verdict.quarter_turns % 4 == 0,
    )
