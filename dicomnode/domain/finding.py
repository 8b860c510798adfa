"""The model's findings in one image: probabilities, and what they mean at an operating point."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dicomnode.domain.frame import FloatArray
from dicomnode.domain.instance import InstanceRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A coded concept: code value, coding scheme designator, code meaning.

    Source: PS3.3 8.8.
    """

    value: str
    scheme: str
    meaning: str


class Presence(StrEnum):
    """Whether a finding is present at its operating point; undetermined when the members disagree about it."""

    PRESENT = "present"
    ABSENT = "absent"
    UNDETERMINED = "undetermined"


def odds_ratio(probability: float, threshold: float) -> float:
    """Return how far a probability stands over a threshold: the ratio of their odds, which is 1 at the threshold."""
    p, t = (min(max(value, 1e-6), 1 - 1e-6) for value in (probability, threshold))
    return (p / (1 - p)) / (t / (1 - t))


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A threshold on the calibrated probability, with how it performed where it was chosen."""

    name: str
    threshold: float
    sensitivity: float
    specificity: float
    derived_on: str
    chosen_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The ensemble's calibrated probability of one label.

    `member_probabilities` are the members' own, calibrated alike; `spread` is their standard deviation.
    """

    label: str
    probability: float
    member_probabilities: tuple[float, ...]
    spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A score read at an operating point.

    `base_rate`: share of the model's training images that have the label, None where the bundle does not state it.
    """

    label: str
    code: Code
    site: Code | None
    probability: float
    spread: float
    operating_point: OperatingPoint
    presence: Presence
    base_rate: float | None = None

    @property
    def threshold(self) -> float:
        """The threshold of the operating point."""
        return self.operating_point.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class SaliencyMap:
    """Where one label's logit comes from.

    `values`: (h, w) float32 on the model's own coarse grid over the whole frame, read-only, signed: positive raises
    the logit. Grad-CAM is its positive part (Selvaraju et al. 2017; exact for a linear head on pooled features).
    """

    label: str
    values: FloatArray
    method: str = "Grad-CAM"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model read the image: name, version, and the SHA-256 of its manifest."""

    name: str
    version: str
    bundle_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Everything the model found in one image. `abnormality` is the finding of the binary head.

    `is_unusual`: the image is far from the training distribution, so that its probabilities are less reliable, but not
    so far that it is rejected.
    """

    source: InstanceRef
    model: ModelIdentity
    abnormality: Finding
    findings: tuple[Finding, ...]
    saliency: tuple[SaliencyMap, ...]
    assessed_at: datetime
    is_unusual: bool = False
