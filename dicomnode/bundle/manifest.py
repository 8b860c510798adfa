"""`manifest.json`: everything serving must know about a model besides its weights."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dicomnode.domain.coding import fault_in
from dicomnode.domain.errors import BundleInvalid
from dicomnode.domain.finding import Code
from dicomnode.domain.validation import sentence

MOST_POINTS, MOST_BINS = 256, 50
AREA_TOLERANCE = 0.02
"""How far the area under a label's thinned curve may be from its `auc`."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CodeEntry(_Strict):
    """A coded concept, as in `dicomnode.domain.finding.Code`, that can be one of the scheme it names."""

    value: str
    scheme: str
    meaning: str

    @model_validator(mode="after")
    def _is_of_its_scheme(self) -> Self:
        if fault := fault_in(Code(value=self.value, scheme=self.scheme, meaning=self.meaning)):
            raise ValueError(fault)
        return self


class InputSpec(_Strict):
    """How a radiograph becomes the model's input: see `dicomnode.bundle.preprocess`."""

    side: int = Field(ge=32, le=2048)
    source_side: int = Field(default=128, ge=32, le=2048)
    low_percentile: float = Field(default=1.0, ge=0, lt=50)
    high_percentile: float = Field(default=99.0, gt=50, le=100)
    centre_fraction: float = Field(default=0.75, gt=0, le=1)
    gamma_bounds: tuple[float, float] = (0.5, 2.0)


class Calibration(_Strict):
    """Platt scaling of the ensemble's mean logit: probability = sigmoid(slope · logit + intercept)."""

    slope: float = Field(gt=0)
    intercept: float


Share = Annotated[float, Field(ge=0, le=1)]


class OperatingPointEntry(_Strict):
    """A threshold on the calibrated probability and how it performed where it was derived, with 95 % intervals.

    Bundles made before there were any have no intervals.
    """

    threshold: Share
    sensitivity: Share
    specificity: Share
    derived_on: str = Field(min_length=1)
    chosen_by: str = Field(min_length=1)
    sensitivity_interval: tuple[Share, Share] | None = None
    specificity_interval: tuple[Share, Share] | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name, value, interval in (
            ("sensitivity", self.sensitivity, self.sensitivity_interval),
            ("specificity", self.specificity, self.specificity_interval),
        ):
            if interval is not None and not interval[0] <= value <= interval[1]:
                raise ValueError(f"{name} lies in its interval")
        return self


class ScoreReference(_Strict):
    """How the probabilities were distributed out of fold: counts in bins, each with its upper bound."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if len(self.bounds) != len(self.counts) or any(count < 0 for count in self.counts):
            raise ValueError("scores hold one count, not negative, for each bound")
        if list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError("the bounds of scores grow")
        return self


class RocCurve(_Strict):
    """Some points of the receiver operating characteristic, from (0, 0) to (1, 1).

    `low`, `high`: 95 % interval of the sensitivity at each false positive rate, drawn by patient.
    """

    false_positive_rate: tuple[Share, ...] = Field(min_length=2, max_length=MOST_POINTS)
    sensitivity: tuple[Share, ...]
    low: tuple[Share, ...] | None = None
    high: tuple[Share, ...] | None = None

    @property
    def area(self) -> float:
        """The area under straight lines from point to point."""
        points = zip(self.false_positive_rate, self.sensitivity, strict=True)
        return sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(points))

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        columns = (self.false_positive_rate, self.sensitivity)
        if len(columns[0]) != len(columns[1]):
            raise ValueError("a curve has as many values of sensitivity as of false_positive_rate")
        if any(column[0] != 0 or column[-1] != 1 for column in columns):
            raise ValueError("a curve goes from (0, 0) to (1, 1)")
        if any(later < former for column in columns for former, later in pairwise(column)):
            raise ValueError("false_positive_rate and sensitivity never fall along a curve")
        return self

    @model_validator(mode="after")
    def _is_in_its_band(self) -> Self:
        low, at, high = self.low, self.sensitivity, self.high
        if low is None and high is None:
            return self
        if low is None or high is None or not len(low) == len(at) == len(high):
            raise ValueError("a curve has as many values of low and of high as of sensitivity, or neither")
        if any(not below <= value <= above for below, value, above in zip(low, at, high, strict=True)):
            raise ValueError("sensitivity lies between low and high")
        return self


class ReliabilityBin(_Strict):
    """Images of similar probability: its mean, and the share of them that have the label with its 95 % interval."""

    predicted: Share
    observed: Share
    low: Share
    high: Share
    images: int = Field(ge=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.low <= self.observed <= self.high:
            raise ValueError("observed lies between low and high")
        return self


class Curves(_Strict):
    """How an output ranks images its network did not learn from, and whether its probabilities are to be believed.

    `images`, `patients`: all those it was measured on, with and without the label.
    """

    derived_on: str = Field(min_length=1)
    images: int = Field(ge=1)
    patients: int = Field(ge=1)
    roc: RocCurve
    reliability: tuple[ReliabilityBin, ...] = Field(min_length=1, max_length=MOST_BINS)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.patients > self.images:
            raise ValueError("there are no more patients than images")
        if sum(one.images for one in self.reliability) != self.images:
            raise ValueError("the bins of reliability hold all images, each once")
        if any(later.predicted < former.predicted for former, later in pairwise(self.reliability)):
            raise ValueError("predicted never falls from bin to bin")
        return self


class LabelEntry(_Strict):
    """One output of the model. `auc` is out of fold, with its 95 % interval; None when too few positives.

    `scores`: the probabilities that drift is measured against; `curves`: of the images that `positives` counts. Both
    are absent from bundles made before there were any, `curves` also where there are too few positives. `prevalence`:
    share of the training images that have the label, where `positives` does not count all of them.

    `name` is what pictures and pages show, with spaces for underscores; ASCII, as their fonts are.
    """

    name: str = Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,62}[!-\[\]-~])?$")
    code: CodeEntry | None
    site: CodeEntry | None
    calibration: Calibration
    operating_points: dict[str, OperatingPointEntry] = Field(min_length=1)
    auc: float | None = Field(default=None, ge=0, le=1)
    auc_interval: tuple[float, float] | None = None
    positives: int = Field(ge=0)
    prevalence: Share | None = None
    scores: ScoreReference | None = None
    curves: Curves | None = None

    @model_validator(mode="after")
    def _is_of_its_curves(self) -> Self:
        if self.curves is None:
            return self
        if self.positives > self.curves.images:
            raise ValueError("curves are of fewer images than there are positives")
        area = self.curves.roc.area
        if self.auc is not None and abs(area - self.auc) > AREA_TOLERANCE:
            raise ValueError(f"the area under the curve is {area:.3f}, but auc {self.auc:.3f}")
        return self


class GateSpec(_Strict):
    """The pixel gate's thresholds, fitted on training data.

    An image is out of distribution when its `typicality` output exceeds `typicality_threshold`. `orientations` names
    the classes of the `orientation` output in order (`upright`, `rot90` …, `inverted-upright` …); a class other than
    `upright` is repaired when its softmax probability is at least `certain`, and rejects the image otherwise. Beyond
    `unusual_threshold` an image is read, and the results say that it is unlike most of the training images; bundles
    made before there was one have none.
    """

    typicality_threshold: float
    unusual_threshold: float | None = None
    orientations: tuple[str, ...]
    certain: float = Field(gt=0.5, le=1)

    @model_validator(mode="after")
    def _knows_upright(self) -> Self:
        if "upright" not in self.orientations:
            raise ValueError("gate.orientations must contain 'upright'")
        if self.unusual_threshold is not None and self.unusual_threshold > self.typicality_threshold:
            raise ValueError("gate.unusual_threshold is at most gate.typicality_threshold")
        return self


class Provenance(_Strict):
    """Where the model comes from. Counts are of the data it was trained on."""

    data: str
    images: int
    patients: int
    folds: int
    recipe: str
    licences: tuple[str, ...]


class Manifest(_Strict):
    """The bundle's contents and meaning.

    Output 0 is the abnormality head; without a code of its own it is "Abnormal". The others, if any, are findings, and
    each has a code, and no two the same code and site.
    """

    schema_version: Literal[1]
    name: str = Field(min_length=1, max_length=64)
    version: str = Field(min_length=1, max_length=32)
    created: str
    intended_use: str
    backbone: str
    members: int = Field(ge=1)
    input: InputSpec
    labels: tuple[LabelEntry, ...] = Field(min_length=1)
    default_operating_point: str
    undetermined_spread: float = Field(ge=0, le=1)
    gate: GateSpec
    provenance: Provenance
    files: dict[str, str]

    def base_rate(self, label: LabelEntry) -> float | None:
        """Return the share of the training images that have a label: its prevalence, else its positives among all."""
        if label.prevalence is not None:
            return label.prevalence or None
        share = label.positives / self.provenance.images if self.provenance.images > 0 else 0.0
        return share if 0 < share < 1 else None

    @property
    def has_curves(self) -> bool:
        """Whether any label has curves."""
        return any(label.curves is not None for label in self.labels)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [label.name for label in self.labels]
        if len(set(names)) != len(names):
            raise ValueError("labels must have different names")
        self._check_codes()
        for label in self.labels:
            if self.default_operating_point not in label.operating_points:
                raise ValueError(f"label {label.name} lacks the operating point {self.default_operating_point!r}")
        return self

    def _check_codes(self) -> None:
        holders: dict[tuple[str, str, str], str] = {}
        for label in self.labels[1:]:
            if label.code is None:
                raise ValueError(f"label {label.name} has no code: a report cannot say what was found")
            # Where a code says no more than "thickening", the site tells two findings apart.
            told_apart_by = (label.code.scheme, label.code.value, label.site.value if label.site else "")
            if (other := holders.setdefault(told_apart_by, label.name)) != label.name:
                raise ValueError(f"labels {other} and {label.name} have the same code and site")


def read_manifest(path: Path) -> Manifest:
    """Read and validate a manifest.

    Raises: BundleInvalid, naming the field that is wrong.
    """
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleInvalid(
            f"{path} cannot be read: {error.strerror}; "
            "a bundle is a folder with a manifest, as `cxrnode export` writes it"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        what = sentence(first["type"], first.get("ctx", {}))
        raise BundleInvalid(f"{path} is not a bundle manifest this version reads: {where}: {what}") from error
