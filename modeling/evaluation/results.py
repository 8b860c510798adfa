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
class ConfusionMatrix:
    """Numbers of images by actual label and decision at one threshold."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """A label read at one threshold. `called`: the share of images that reach the threshold."""

    threshold: float
    chosen_by: str
    rates: Rates
    confusion: ConfusionMatrix
    called: Estimate | None


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
class AucRange:
    """The AUCs of the findings that have one: the least and the greatest with their labels, mean and median."""

    lowest: str
    minimum: float
    highest: str
    maximum: float
    mean: float
    median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfounded:
    """The mean over the findings that are not confounded with the source of the images.

    `confounded`: findings that in some source are less than 5 % as frequent as in the source richest in them; their
    AUC on all sources together measures in part how well the sources are told apart.
    """

    confounded: tuple[str, ...]
    labels: tuple[str, ...]
    auc: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryResult:
    """The abnormality head by the patients' histories.

    A patient was ever ill when any row of the label table names a finding. All positives are of such patients, so they
    are compared with the negatives of either group. `specificity`: by operating point, then by group.
    `findings_ever_ill`: mean AUC of the findings among images of ever-ill patients alone.
    """

    positives: int
    negatives: dict[str, int]
    patients: dict[str, int]
    auc: dict[str, Estimate | None]
    specificity: dict[str, dict[str, Estimate | None]]
    findings_ever_ill: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedResult:
    """Results with the images reweighted to a target population.

    `target`: shares by margin and category. `effective_images`: the number of equally weighted images that would give
    intervals as wide. `rates` are at the bundle's default operating point, `called` is the share that reaches it.
    """

    target: dict[str, dict[str, float]]
    effective_images: float
    auc: dict[str, Estimate | None]
    mean_of_findings: Estimate | None
    rates: dict[str, Rates]
    called: dict[str, Estimate | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverfittingResult:
    """AUCs of members on images that they trained on, and on images that they did not, of the same run.

    `in_sample`, `out_of_fold`, `gap` by label: means over the members; None with too few images. `images`: those of
    the run among the images evaluated.
    """

    images: int
    in_sample: dict[str, Estimate | None]
    out_of_fold: dict[str, Estimate | None]
    gap: dict[str, Estimate | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOverlap:
    """How many of the evaluated images the bundle was trained on, by the digests that it holds."""

    bundle: str
    images: int
    trained_on: int


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
    """The images that share one value, such as the age band 40-59.

    `mean_of_findings`: mean AUC of the findings that all groups can measure, so that groups compare like with like.
    """

    images: int
    patients: int
    labels: dict[str, GroupLabel]
    mean_of_findings: Estimate | None


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
    auc_range: AucRange | None
    unconfounded: Unconfounded | None
    history: HistoryResult | None
    matched: MatchedResult | None
    overfitting: OverfittingResult | None
    averages: dict[str, dict[str, Rates]]
    threshold_sweep: tuple[SweepRow, ...]
    subgroups: dict[str, Axis]
    localisation: dict[str, Localisation]
