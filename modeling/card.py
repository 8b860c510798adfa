"""The model card: every number measured in the run that wrote it."""

from dataclasses import asdict, dataclass

from dicomnode.bundle.manifest import LabelEntry
from modeling.card_evaluations import (
    MAPS_UNMEASURED,
    StoredEvaluation,
    evaluation_sections,
    history_table,
    measure_maps,
    overfitting_table,
    shown,
)
from modeling.config import LiteModel, ModelSection, TrainingConfig
from modeling.evaluation.results import HistoryResult, OverfittingResult
from modeling.gate import GateFit
from modeling.gate_check import KindResult
from modeling.metrics import MIN_POSITIVES, Estimate
from modeling.nih import Radiographs
from modeling.out_of_fold import BOOTSTRAP_ROUNDS, GroupResult, OutOfFoldReport
from modeling.recipe import recipe_in_words
from modeling.recipe_comparison import RecipeComparison, RecipeRow

NIH_REFERENCE = (
    "X. Wang, Y. Peng, L. Lu, Z. Lu, M. Bagheri, R. M. Summers. ChestX-ray8: Hospital-scale Chest X-ray Database and"
    " Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases. CVPR 2017."
)
NIH_LINK = "https://nihcc.app.box.com/v/ChestXray-NIHCC"


DEFAULT = "standard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """`onnx`: ONNX Runtime against Keras with the same weights. `rounding`: logits before and after float16 storage."""

    onnx: float
    rounding: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """Everything that the card states."""

    config: TrainingConfig
    radiographs: Radiographs
    report: OutOfFoldReport
    labels: tuple[LabelEntry, ...]
    warm_start: bool
    gate: GateFit
    foreign: tuple[KindResult, ...]
    parity: Parity
    refitted: tuple[str, ...]
    comparison: RecipeComparison | None
    history: HistoryResult | None
    overfitting: OverfittingResult
    evaluations: tuple[StoredEvaluation, ...]
    licences: tuple[str, ...]
    intended_use: str
    companion: str = ""


def write_card(facts: CardFacts) -> str:
    """Return the model card as Markdown."""
    name = f"# Model card: {facts.config.bundle.name} {facts.config.bundle.version}"
    sections = (
        name, facts.intended_use, _outputs(facts), _data(facts), _recipe(facts),
        _discrimination(facts), _groups(facts.report), _patients(facts), _overfitting(facts),
        _comparison(facts.comparison), _operating_points(facts), _gate(facts),
        evaluation_sections(facts.evaluations), _limits(facts), _sources(facts),
    )  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def _outputs(facts: CardFacts) -> str:
    outputs = facts.report.outputs
    findings = len(outputs) - 1
    others = (
        f" The others are NIH's {findings} labels, which were mined from reports by text processing and are wrong in"
        " part."
    )
    return (
        "## Outputs\n\n"
        f"{len(outputs)} for one frontal chest radiograph. The first, {outputs[0]}, was learnt from NIH's label"
        ' "No Finding": it is positive when at least one of NIH\'s 14 findings was named, which does not cover every'
        " abnormality." + (others if findings else "") + "\n\n"
        f"A label's probability is Platt's sigmoid of the members' mean logit. {_map_in_words(facts.config.model)}"
    )


def _map_in_words(model: ModelSection) -> str:
    """Return what the map of an output is."""
    if isinstance(model, LiteModel) and model.read_out == "pyramid":
        return (
            "Its map is the exact contribution of each position to that mean logit (HiResCAM, Draelos and Carin 2020):"
            " over all cells it sums to the logit less its bias. Each output weighs the positions by weights of its"
            " own, which it learnt from labels alone, so its map is also weak where the finding is rarely seen."
        )
    return (
        "Its class activation map is the exact Grad-CAM of that mean logit before the ReLU: over all cells it sums to"
        " the logit less its bias."
    )


def _data(facts: CardFacts) -> str:
    radiographs, report = facts.radiographs, facts.report
    by_view = {str(view): int((radiographs.views == view).sum()) for view in sorted(set(radiographs.views))}
    by_source = {int(side): int((radiographs.source_px == side).sum()) for side in sorted(set(radiographs.source_px))}
    views = ", ".join(f"{count} {view}" for view, count in by_view.items())
    sources = ", ".join(f"{count} of {side} px" for side, count in by_source.items())
    spec = facts.config.input
    return (
        "## Data\n\n"
        f"NIH ChestX-ray14: {len(radiographs.names)} images of {report.groups[0].patients} patients"
        f" ({views}; {sources}). Every image is reduced to {spec.source_side} px, its grey scale standardised, and"
        f" enlarged to {spec.side} px, in training as in serving."
        " No image of NIH's is in this folder: the golden vectors are drawings."
    )


def _recipe(facts: CardFacts) -> str:
    text = (
        "## Training\n\n"
        f"{facts.config.train.folds} networks, one per fold; folds are by patient, stratified by abnormality and source"
        f" resolution. {recipe_in_words(facts.config, warm_start=facts.warm_start)}"
    )
    if facts.refitted:
        least = facts.config.confounding.least_source_frequency
        text += (
            f"\n\nConfounded with the source: {', '.join(facts.refitted)}. In some source the label is less than"
            f" {least:g} times as frequent as in the richest, so the output learnt to recognise the source. Its row of"
            " the last layer was fitted again, and everything about it measured, on the other sources alone (Kirichenko"
            " et al., ICLR 2023); its probability was then shifted to the label's frequency in all the data."
        )
    note = f"\n\n{facts.config.bundle.note}" if facts.config.bundle.note else ""
    companion = f"\n\n{facts.companion}" if facts.companion else ""
    return text + note + companion


def _discrimination(facts: CardFacts) -> str:
    report, whole = facts.report, facts.report.groups[0]
    of = "the one member" if not facts.companion else "the mean of the two members, one of each part,"
    single = "single members" if not facts.companion else "pairs of members"
    rows = [
        f"| {name} | {whole.positives[c]} | {_shown(whole.aucs[c])} | {report.view_only[c]:.3f} |"
        f" {report.source_only[c]:.3f} | {report.source_shift[c]:.2f} |"
        for c, name in enumerate(report.outputs)
    ]
    return (
        "## Discrimination, out of fold\n\n"
        f"AUC of {of} that did not see the patient, so of {single}: the ensemble itself cannot be scored on these"
        " images, and is expected to do a little better. In brackets the 95 % interval of a bootstrap over"
        f" patients ({BOOTSTRAP_ROUNDS} rounds). Beside it, what guessing from the view (AP or PA) alone, or from the"
        " resolution of the source alone, would reach; and how far the mean logits of two sources' negatives lie"
        " apart at most, in standard deviations.\n\n"
        "| output | positives | AUC | view only | source only | source shift |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
        f"| **mean of the {len(report.outputs) - 1} findings** | | **{_shown(whole.mean_findings)}** | | | |"
        + _unconfounded(report)
    )


def _unconfounded(report: OutOfFoldReport) -> str:
    if not report.confounded:
        return ""
    others = len(report.outputs) - 1 - len([name for name in report.confounded if name != report.outputs[0]])
    names = ", ".join(report.confounded)
    return f"\n| **mean of {others} findings, without {names}** | | **{_shown(report.mean_unconfounded)}** | | | |"


def _patients(facts: CardFacts) -> str:
    if facts.history is None:
        return ""
    return "## By the patients' histories, out of fold\n\n" + history_table(asdict(facts.history), shown)


def _overfitting(facts: CardFacts) -> str:
    return "## In-sample against out-of-fold\n\n" + overfitting_table(asdict(facts.overfitting), shown)


def _groups(report: OutOfFoldReport) -> str:
    groups = report.groups[1:]
    if not groups:
        return ""
    head = "| output | " + " | ".join(f"{g.name} ({g.images} images, {g.patients} patients)" for g in groups) + " |"
    rows = [
        f"| {name} | " + " | ".join(_with_count(g, c) for g in groups) + " |" for c, name in enumerate(report.outputs)
    ]
    means = "| **mean of the findings shown** | " + " | ".join(f"**{_shown(g.mean_findings)}**" for g in groups) + " |"
    return (
        "## By source resolution and by view\n\n"
        "The sources were sampled differently, so source and label are confounded in the pooled figures above; within"
        f" one source they are not. A dash: fewer than {MIN_POSITIVES} positives or negatives.\n\n"
        + "\n".join([head, "|---" * (len(groups) + 1) + "|", *rows, means])
    )


def _comparison(comparison: RecipeComparison | None) -> str:
    if comparison is None:
        return ""
    rows = "\n".join(_compared(row) for row in comparison.rows)
    return (
        "## The recipes of other systems, on the same patients\n\n"
        f"Each recipe was trained here on the same images and judged on the same {comparison.images} of"
        f" {comparison.patients} patients that it did not train on, with one network each. Differences are from the"
        " first row, paired by patient. A run that began with pretrained weights has that advantage over one that began"
        " with random ones, whatever its recipe; minutes are of the clock. The last column is what was published, on"
        " other images, other splits (random ones put one patient on both sides) and with ImageNet's weights: it cannot"
        " be compared with the rest.\n\n"
        "| recipe | backbone | first weights | batch | epochs | images seen | minutes | abnormality AUC | difference |"
        " mean AUC of findings | difference | published |\n" + "|---" * 12 + "|\n" + rows
    )


def _compared(row: RecipeRow) -> str:
    cells = (
        row.config.bundle.name, row.config.model.backbone, "pretrained" if row.warm else "random",
        row.config.train.batch_size, row.epochs, row.images_seen, f"{row.minutes:.0f}",
        _shown(row.abnormality), _gap(row.abnormality_difference), _shown(row.findings),
        _gap(row.findings_difference), row.config.bundle.published or "-",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _gap(value: Estimate | None) -> str:
    return "" if value is None else f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


def _operating_points(facts: CardFacts) -> str:
    labels, fitted_on = facts.labels, "pairs of" if facts.companion else "single"
    names = tuple(labels[0].operating_points)
    head = "| output | slope, intercept | " + " | ".join(names) + " |"
    rows = []
    for label in labels:
        points = (label.operating_points[name] for name in names)
        cells = " | ".join(f"{p.threshold:.3f}: {p.sensitivity:.2f} / {p.specificity:.2f}" for p in points)
        rows.append(f"| {label.name} | {label.calibration.slope:.2f}, {label.calibration.intercept:.2f} | {cells} |")
    return (
        "## Calibration and operating points\n\n"
        f"Fitted on the out-of-fold logits of {fitted_on} members and applied to the ensemble's mean logit, which"
        " spreads a little less; thresholds are on the calibrated probability, which reflects how frequent the labels"
        " are in the training data. Cells: threshold: sensitivity / specificity, measured where they were derived.\n\n"
        f"The default is {DEFAULT}. For the first output it is never_ill_90: a specificity of 90 % among images of"
        " patients without a finding in any image. Most patients of this hospital are ill at some time, and images of"
        " theirs without a finding are hard to tell from those with one; a threshold chosen among them (youden) calls"
        " too many chests of healthier populations abnormal. For the findings it is ppv_10.\n\n"
        + "\n".join([head, "|---" * (len(names) + 2) + "|", *rows])
    )


def _gate(facts: CardFacts) -> str:
    fit = facts.gate
    turned = "\n".join(
        f"| {name} | {100 * fit.repaired[name]:.1f} % | {100 * fit.unnoticed[name]:.1f} % |" for name in fit.repaired
    )
    return (
        "## Pixel gate\n\n"
        f"Distance of {_gate_features(facts)} from those of upright training images, as they are and restyled, and a"
        f" linear classifier of orientation; {_gate_thresholds(facts)} Of"
        f" {fit.sample_size} upright training images {100 * fit.rejected:.1f} % are rejected. Of {fit.turned_size}"
        f" images each, turned or inverted by program (certain: a probability of at least {fit.spec.certain:g}):\n\n"
        "| orientation | certainly and rightly recognised, so repaired | passes unnoticed |\n|---|---|---|\n"
        f"{turned}" + _foreign(facts.foreign)
    )


def _gate_thresholds(facts: CardFacts) -> str:
    if not facts.companion:
        return "thresholds out of fold, on training images only."
    spec, share = facts.gate.spec, facts.config.gate
    return (
        f"both are those of the other part. The threshold is the larger of the views' {100 * share.quantile:g} %"
        f" quantiles of the training images: {spec.typicality_threshold:.2f}. Beyond {spec.unusual_threshold:.2f},"
        f" likewise the {100 * (1 - share.unusual):g} % quantile, an image is read and called unusual."
    )


def _gate_features(facts: CardFacts) -> str:
    model = facts.config.model
    if isinstance(model, LiteModel) and model.frozen_blocks:
        return "features of the first blocks as pretrained, averaged over cells,"
    return "edge strength by direction and brightness, averaged over cells (coarser than features of frozen layers),"


def _foreign(kinds: tuple[KindResult, ...]) -> str:
    if not kinds:
        return ""
    rows = "\n".join(
        f"| {k.kind} | {k.images} | {k.passed} ({100 * k.passed / k.images:.1f} %) | {k.repaired} |" for k in kinds
    )
    return (
        "\n\nOn images of other hospitals and other kinds, none of which was used for fitting. The kind of feature and"
        " the gate's settings were chosen with these figures in view, so they flatter it a little.\n\n"
        f"| kind | images | pass | of those, after a repair |\n|---|---|---|---|\n{rows}"
    )


def _limits(facts: CardFacts) -> str:
    return (
        "## Limits\n\n"
        "- Labels were mined from one hospital's reports; probabilities carry the frequency of labels in this subset."
        f" Never compared with radiologists, never tried prospectively{_maps_unmeasured(facts)}.\n"
        f"- It sees {facts.config.input.source_side} px: small nodules and fine lines are beyond it.\n"
        "- Maps are coarse and show where the evidence of a logit lies, not where disease ends.\n"
        "- The gate rejects a frontal radiograph of another body region only if it looks unlike a chest.\n"
        f"- Weights are stored as float16: logits differ by at most {facts.parity.rounding:.1e} from training's; the"
        f" ONNX graph agrees with Keras on the same weights to {facts.parity.onnx:.1e} of each output's scale."
    )


def _maps_unmeasured(facts: CardFacts) -> str:
    return "" if measure_maps(facts.evaluations) else MAPS_UNMEASURED


def _sources(facts: CardFacts) -> str:
    licences = "\n".join(f"- {licence}" for licence in facts.licences)
    return f"## Sources and licences\n\n{NIH_REFERENCE} NIH Clinical Center, {NIH_LINK}\n\n{licences}"


def _shown(value: Estimate | None) -> str:
    return "-" if value is None else str(value)


def _with_count(group: GroupResult, index: int) -> str:
    return f"{_shown(group.aucs[index])}, {group.positives[index]} pos."
