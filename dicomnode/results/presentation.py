"""What people are shown of an image, and in which words: the same rules for pictures, report, document and page.

Heat and outlines are drawn only for what is above its threshold, and only on the patient's body.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import cv2
import numpy as np

from dicomnode.domain.finding import Assessment, Finding, Presence, odds_ratio
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.results.body import BoolArray, onto
from dicomnode.results.context import SourceContext
from dicomnode.settings.node import ResultSettings

ABNORMALITY = "Abnormality"
"""What people read in place of the binary head's label."""
OUTLINE_LEVEL = 0.6
"""Where a finding's outline runs, between its map's least and greatest value on the body."""
HEATMAP_TITLE = "Grad-CAM heatmap: coarse regions that raised the score"
UNUSUAL = "Unusual image: probabilities are less reliable"
_ORDER = (Presence.PRESENT, Presence.UNDETERMINED, Presence.ABSENT)
_NAMED = 3
_MOSTLY_OUTSIDE = 0.25


class Rated(Protocol):
    """A label with its probability read at an operating point: a finding, or what a summary keeps of it."""

    @property
    def label(self) -> str:
        """The label's name in the bundle."""

    @property
    def probability(self) -> float:
        """The calibrated probability."""

    @property
    def threshold(self) -> float:
        """The operating point's threshold."""

    @property
    def presence(self) -> Presence:
        """What the probability means at the threshold."""

    @property
    def base_rate(self) -> float | None:
        """How common the label is among the training images, None where that is not known."""


R = TypeVar("R", bound=Rated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A sentence about the image beside the findings; `is_warning`: it limits what may be believed."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """A map as it is drawn.

    `values`: (rows, columns) float32 from 0, where the map is least on the body, to 1, where it is greatest; 0 outside
    the body. `outside`: the share of the whole map that lies outside the body and is left out.
    """

    values: FloatArray
    outside: float


def evidence(rated: Rated) -> float:
    """Return the log odds of the probability over those of the threshold: 0 at the threshold, positive above it."""
    return math.log(odds_ratio(rated.probability, rated.threshold))


def by_evidence(findings: Iterable[R]) -> tuple[R, ...]:
    """Return findings above threshold first, then undetermined ones, then those below; each by evidence."""
    return tuple(sorted(findings, key=lambda rated: (_ORDER.index(rated.presence), -evidence(rated))))


def with_heat(abnormality: R, findings: Iterable[R]) -> tuple[R, ...]:
    """Return the findings whose maps are drawn, by evidence.

    Those above their thresholds; abnormality where it alone is; none where nothing is.
    """
    above = tuple(rated for rated in by_evidence(findings) if rated.presence is Presence.PRESENT)
    return above or ((abnormality,) if abnormality.presence is Presence.PRESENT else ())


def findings_with_heat(assessment: Assessment) -> tuple[Finding, ...]:
    """Return the findings of an image whose maps are drawn; see `with_heat`."""
    return with_heat(assessment.abnormality, assessment.findings)


def heat_of(values: FloatArray, shape: tuple[int, int], body: BoolArray) -> Heat | None:
    """Return a map on a grid of this shape over the whole image; None where no place on the body stands out.

    `values`: a `SaliencyMap`'s; `body`: see `dicomnode.results.body.body_mask`.
    """
    positive = np.ascontiguousarray(np.maximum(values, 0.0), dtype=np.float32)
    if not positive.any():
        return None
    larger = cv2.resize(positive, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    larger = np.maximum(larger, 0.0)
    inside = onto(body, shape) > 0
    on_body = larger[inside]
    least, greatest = (float(on_body.min()), float(on_body.max())) if on_body.size else (0.0, 0.0)
    if greatest - least <= 1e-6 * float(positive.max()):
        return None
    scaled = np.where(inside, (larger - least) / (greatest - least), 0.0)
    outside = 1 - float(on_body.sum(dtype=np.float64)) / float(larger.sum(dtype=np.float64))
    return Heat(values=np.asarray(scaled, dtype=np.float32), outside=max(outside, 0.0))


def name_of(rated: Rated) -> str:
    """Return a label's name for people."""
    return rated.label.replace("_", " ")


def title_of(finding: Finding, assessment: Assessment) -> str:
    """Return a finding's name for people, where it may be the binary head's."""
    return ABNORMALITY if finding.label == assessment.abnormality.label else name_of(finding)


def word_of(presence: Presence, settings: ResultSettings) -> str:
    """Return the site's word for what a probability means at its threshold."""
    return {
        Presence.PRESENT: settings.word_above,
        Presence.ABSENT: settings.word_below,
        Presence.UNDETERMINED: settings.word_undetermined,
    }[presence]


def percent(probability: float) -> str:
    """Return a probability for reading: two digits where they matter."""
    value = 100 * probability
    if value < 0.1:
        return "<0.1%"
    if value > 99.9:
        return ">99.9%"
    return f"{value:.1f}%"


def times_base_rate(rated: Rated) -> str:
    """Return the probability as a multiple of the base rate, such as `3.1×`; "" where that is not known."""
    if not rated.base_rate:
        return ""
    times = rated.probability / rated.base_rate
    return f"{times:.1f}×" if times < 9.95 else f"{times:.0f}×"


def likelihood(rated: Rated) -> str:
    """Return how likely the label is against its base rate, in words; "" where that is not known."""
    times = times_base_rate(rated).removesuffix("×")
    return f"{times} times the base rate of {100 * (rated.base_rate or 0.0):.2g}%" if times else ""


def statement(finding: Finding, name: str, settings: ResultSettings) -> str:
    """Return one finding in a line: its name, probability, what that means at the threshold, and its likelihood."""
    word = f"{word_of(finding.presence, settings)} ({percent(finding.threshold)})"
    return f"{name} {', '.join(filter(None, (percent(finding.probability), word, likelihood(finding))))}"


def impression(abnormality: Rated, findings: Sequence[Rated], settings: ResultSettings) -> str:
    """Return what was found in one plain sentence; that nothing was found does not make an image normal."""
    above = [rated for rated in by_evidence(findings) if rated.presence is Presence.PRESENT]
    undetermined = [rated for rated in by_evidence(findings) if rated.presence is Presence.UNDETERMINED]
    whole = f"{ABNORMALITY.lower()} ({percent(abnormality.probability)})"
    if above:
        verb = "is" if len(above) == 1 else "are"
        sentence = f"{_names(above)} {verb} {settings.word_above}"
        if abnormality.presence is Presence.PRESENT:
            return f"{sentence}, and so is {whole}."
        return f"{sentence}; {whole} is {word_of(abnormality.presence, settings)}."
    if abnormality.presence is Presence.PRESENT:
        rest = "; no single finding is" if findings else ""
        return f"{whole.capitalize()} is {settings.word_above}{rest}."
    nothing = f"Nothing is {settings.word_above}"
    if abnormality.presence is Presence.UNDETERMINED:
        return f"{nothing}; {whole} is {settings.word_undetermined}."
    if undetermined:
        verb = "is" if len(undetermined) == 1 else "are"
        return f"{nothing}; {_names(undetermined)} {verb} {settings.word_undetermined}."
    return f"{nothing}."


def _names(findings: Sequence[Rated]) -> str:
    """Return names with probabilities: `Mass (70.0%), Edema (50.0%) and 3 more`."""
    shown = [f"{name_of(rated)} ({percent(rated.probability)})" for rated in findings[:_NAMED]]
    if len(findings) > _NAMED:
        shown.append(f"{len(findings) - _NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def legend_of(shown: Sequence[str], *, is_anything_above: bool, outside: float) -> tuple[str, str]:
    """Return what the heatmap is, and whose maps it shows (`shown`: their names for people) or why there is none.

    `outside`: the greatest share of a map that lies outside the body and is not drawn.
    """
    if not is_anything_above:
        return "No heatmap", "Nothing is above its threshold."
    if not shown:
        return "No heatmap", "What is above its threshold has no region on the body that stands out."
    names = ", ".join(shown[:_NAMED]) + (f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else "")
    if outside >= _MOSTLY_OUTSIDE:
        return HEATMAP_TITLE, f"Shown: {names}. Of the map, {outside:.0%} is outside the body and not shown"
    return HEATMAP_TITLE, f"Shown: {names}"


def notes_on(
    frame: Frame, orientation: tuple[str, str] | None, *, is_unusual: bool, is_stated: bool = True
) -> tuple[Note, ...]:
    """Return what a reader must know of an image beside its findings, warnings first.

    `orientation`: the Patient Orientation of `frame.pixels`, None if the source states none that holds for them;
    `is_stated`: False for an image that cannot state one, such as a picture that is no DICOM object.
    """
    notes = [Note(text=UNUSUAL, is_warning=True)] if is_unusual else []
    notes += [Note(text=text, is_warning=True) for text in repairs(frame)]
    if is_stated:
        notes.append(_side_note(frame, orientation))
    return tuple(sorted(notes, key=lambda note: not note.is_warning))


def _side_note(frame: Frame, orientation: tuple[str, str] | None) -> Note:
    """Return what is known of left and right. Source: PS3.3 C.7.6.1.1.1."""
    if not frame.left_right_verified:
        return Note(text="Left and right are not verified: the image may be mirrored", is_warning=True)
    side = orientation[0][:1] if orientation is not None else ""
    if side == "L":
        return Note(text="Patient's left is on the right, as the image states")
    if side == "R":
        return Note(text="Patient's left is on the LEFT, as the image states", is_warning=True)
    return Note(text="The image does not state left and right")


def orientation_of(frame: Frame, source: SourceContext) -> tuple[str, str] | None:
    """Return the Patient Orientation of `frame.pixels`, None if the source states none that holds for them."""
    return source.orientation_after(frame.turned_from_source, mirrored=frame.mirrored_from_source)


def repairs(frame: Frame) -> list[str]:
    """Return what was done to the stored image to make it upright, as sentences for people."""
    done = []
    if frame.mirrored_from_source:
        done.append("Image mirrored left to right by this software")
    if frame.turned_from_source % 4:
        done.append(f"Image turned by {90 * (frame.turned_from_source % 4)}° counter-clockwise by this software")
    if frame.inverted_from_source:
        done.append("Grey scale inverted by this software")
    return done
