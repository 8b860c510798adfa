"""The pixel gate: whatever the tags say, the image must be an upright frontal chest radiograph as the model knows."""

from dataclasses import dataclass

import numpy as np

from dicomnode.bundle.manifest import GateSpec
from dicomnode.domain.frame import Frame
from dicomnode.inference.predictor import Reading

UPRIGHT = "upright"
_INVERTED = "inverted-"
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
    """Return the frame righted, remembering what was done to it."""
    pixels = np.rot90(frame.pixels, verdict.quarter_turns)
    pixels = np.ascontiguousarray(1.0 - pixels if verdict.invert else pixels, dtype=np.float32)
    pixels.setflags(write=False)
    spacing = frame.spacing_mm
    if spacing is not None and verdict.quarter_turns % 2:
        spacing = (spacing[1], spacing[0])
    return Frame(
        source=frame.source,
        pixels=pixels,
        spacing_mm=spacing,
        rendering=frame.rendering,
        window=frame.window,
        turned_from_source=(frame.turned_from_source + verdict.quarter_turns) % 4,
        inverted_from_source=frame.inverted_from_source != verdict.invert,
    )
