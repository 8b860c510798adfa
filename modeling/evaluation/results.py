"""The results of an evaluation; None where there are too few images to measure."""

from dataclasses import dataclass

from modeling.evaluation.pointing import Localisation
from modeling.metrics import Estimate

Rates = dict[str, Estimate | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberAucs:
    """The AUC of each member, their mean and standard deviation; the ensemble's AUC should exceed the mean."""

    aucs: tuple[float, ...]
    mean: float
    sd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """A label read at one threshold."""

    threshold: float
    chosen_by: str
    rates: Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelResult:
    """One label on all images. `view_only_auc`: of guessing from AP or PA alone."""

    positives: int
    negatives: int
    auc: Estimate | None
    members: MemberAucs | None
    view_only_auc: Estimate | None
    auprc: Estimate | None
    brier: Estimate | None
    ece: Estimate | None
    calibration_slope: Estimate | None
    calibration_intercept: Estimate | None
    operating_points: dict[str, PointResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanResult:
    """The mean over the findings that have an AUC."""

    labels: tuple[str, ...]
    auc: Estimate | None
    members: MemberAucs | None
    view_only_auc: Estimate | None
    auprc: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """The abnormality head at one of the first system's thresholds."""

    threshold: float
    accuracy: float
    rates: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLabel:
    """One label in one group; the rates are at the bundle's default operating point."""

    positives: int
    auc: Estimate | None
    sensitivity: Estimate | None
    specificity: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The images that share one value, such as the age band 40-59."""

    images: int
    patients: int
    labels: dict[str, GroupLabel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A measure's difference between the group where it is best and the one where it is worst."""

    best: str
    worst: str
    difference: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Groups by one attribute; `gaps` by label, then by measure. `unknown`: images without the attribute."""

    unknown: int
    groups: dict[str, Group]
    gaps: dict[str, dict[str, Gap]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResults:
    """All results; `metrics.json` has the same fields."""

    images: int
    patients: int
    gate: dict[str, int]
    labels: dict[str, LabelResult]
    mean_of_findings: MeanResult
    averages: dict[str, dict[str, Rates]]
    threshold_sweep: tuple[SweepRow, ...]
    subgroups: dict[str, Axis]
    localisation: dict[str, Localisation]
