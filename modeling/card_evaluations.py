"""The model card's sections about evaluations, made from the `metrics.json` that `cxrnode evaluate` wrote."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.terminology import ABNORMALITY
from modeling.training_images import is_same_model

METRICS = "metrics.json"
LABELLED, UNLABELLED = "## Evaluation: ", "## Images without labels: "
BEFORE = "## Limits"
MAPS_UNMEASURED = "; maps were not measured against boxes"
"""What the limits state until an evaluation compares maps with boxes."""
_UNTITLED = "labelled images"
_Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvaluation:
    """The measures of one evaluation. `fingerprint`: of the model that was evaluated."""

    folder: Path
    fingerprint: tuple[float, ...]
    metrics: _Json

    @property
    def title(self) -> str:
        """The evaluation's title, or the name of its label table."""
        return str(self.metrics.get("title") or self.metrics.get("input", {}).get("labels") or _UNTITLED)


def read_evaluation(folder: Path) -> StoredEvaluation:
    """Read the measures that an evaluation wrote.

    Raises: ConfigurationError when there are none, or another version wrote them.
    """
    path = folder / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        fingerprint = tuple(float(value) for value in metrics["bundle"]["fingerprint"])
        _ = metrics["unlabelled"] if "unlabelled" in metrics else metrics["labels"]
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}): is {folder} an evaluation?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is not of this version: run `cxrnode evaluate` again") from error
    return StoredEvaluation(folder=folder, fingerprint=fingerprint, metrics=metrics)


def require_same_model(evaluations: Sequence[StoredEvaluation], fingerprint: Sequence[float]) -> None:
    """Raise ConfigurationError when one of the evaluations is of another model."""
    others = [str(stored.folder) for stored in evaluations if not is_same_model(stored.fingerprint, fingerprint)]
    if others:
        raise ConfigurationError(f"evaluations of another model: {', '.join(others)}; evaluate this bundle")


def evaluation_sections(evaluations: Sequence[StoredEvaluation]) -> str:
    """Return the sections of all evaluations as Markdown, "" without any."""
    return "\n\n".join(
        _unlabelled(stored) if "unlabelled" in stored.metrics else _labelled(stored) for stored in evaluations
    )


def with_sections(card: str, sections: str) -> str:
    """Return a model card whose sections about evaluations are these; they stand before its limits."""
    parts = re.split(r"^(?=## )", card, flags=re.MULTILINE)
    kept = [part.rstrip("\n") for part in parts if not part.startswith((LABELLED, UNLABELLED))]
    place = next((at for at, part in enumerate(kept) if part.startswith(BEFORE)), len(kept))
    whole = [*kept[:place], *([sections] if sections else []), *kept[place:]]
    return "\n\n".join(whole) + "\n"


def measure_maps(evaluations: Sequence[StoredEvaluation]) -> bool:
    """Tell whether any of the evaluations compared maps with boxes."""
    return any(stored.metrics.get("localisation") for stored in evaluations)


def _labelled(stored: StoredEvaluation) -> str:
    metrics = stored.metrics
    parts = [
        f"{LABELLED}{stored.title}",
        _scope(metrics),
        _by_label(metrics),
        _means(metrics),
        _called(metrics),
        _history(metrics),
        _axis(metrics, "source"),
        _axis(metrics, "view"),
        _overfitting(metrics),
        _matched(metrics),
        _localisation(metrics),
    ]
    return "\n\n".join(part for part in parts if part)


def _scope(metrics: _Json) -> str:
    text = (
        f"{metrics['images']} images of {metrics['patients']} patients, read by the ensemble. Intervals are of"
        f" {metrics['bootstrap']['rounds']} bootstrap samples of whole patients, 95 %."
    )
    overlap = metrics.get("training_images")
    if overlap is None:
        return text
    if overlap["trained_on"]:
        return text + f" **The model was trained on {overlap['trained_on']} of them: the figures are too good.**"
    return text + " None of them was in the training, by the names and pixels of its images."


def _by_label(metrics: _Json) -> str:
    default = metrics["bundle"]["default_operating_point"]
    rows = []
    for label, result in metrics["labels"].items():
        rates = result["operating_points"][default]["rates"]
        figures = (result["auc"], result["view_only_auc"], rates["sensitivity"], rates["specificity"])
        rows.append((_name(label), str(result["positives"]), *map(shown, figures)))
    heads = ("output", "positives", "AUC", "view only", f"sensitivity at {default}", f"specificity at {default}")
    return _table(heads, rows)


def _means(metrics: _Json) -> str:
    mean, spread, unconfounded = metrics["mean_of_findings"], metrics["auc_range"], metrics["unconfounded"]
    text = f"Mean AUC of {len(mean['labels'])} findings: {shown(mean['auc'])}."
    if spread is not None:
        text += (
            f" Minimum {spread['minimum']:.3f} ({_name(spread['lowest'])}), median {spread['median']:.3f}, maximum"
            f" {spread['maximum']:.3f} ({_name(spread['highest'])})."
        )
    if unconfounded is not None and unconfounded["confounded"]:
        names = ", ".join(map(_name, unconfounded["confounded"]))
        text += (
            f" {names}: less than 5 % as frequent in some source as in the richest, so confounded with the source; mean"
            f" AUC of the {len(unconfounded['labels'])} others: {shown(unconfounded['auc'])}."
        )
    return text


def _called(metrics: _Json) -> str:
    result = metrics["labels"].get(ABNORMALITY)
    if result is None:
        return ""
    rows = []
    for name, point in result["operating_points"].items():
        rates, cells = point["rates"], point["confusion"]
        matrix = f"{cells['true_positives']} / {cells['false_positives']} / {cells['false_negatives']}"
        figures = (point["called"], rates["sensitivity"], rates["specificity"])
        rows.append((name, f"{point['threshold']:.3f}", *map(shown, figures), f"{matrix} / {cells['true_negatives']}"))
    heads = ("operating point", "threshold", "share called abnormal", "sensitivity", "specificity", "TP / FP / FN / TN")
    return f"{ABNORMALITY} at each operating point:\n\n" + _table(heads, rows)


def _history(metrics: _Json) -> str:
    history = metrics["history"]
    return "" if history is None else history_table(history, shown)


def history_table(history: _Json, figure: Callable[[Any], str]) -> str:
    """Return the table of ever-ill and never-ill patients; `figure` writes an estimate of `history`."""
    rows = [
        (
            f"of {group} patients", str(history["patients"][group]), str(history["negatives"][group]),
            figure(history["auc"][group]), *(figure(point[group]) for point in history["specificity"].values()),
        )
        for group in history["negatives"]
    ]  # fmt: skip
    heads = ("negatives", "patients", "images", f"AUC of {ABNORMALITY}")
    points = tuple(f"specificity at {name}" for name in history["specificity"])
    return (
        f"{ABNORMALITY} by the patients' histories. A patient was ever ill when any row of the label table names a"
        f" finding; all {history['positives']} positives are of such patients, and each AUC compares them with the"
        " negatives of one group.\n\n"
        + _table((*heads, *points), rows)
        + f"\n\nMean AUC of the findings among images of ever-ill patients: {figure(history['findings_ever_ill'])}."
    )


def _axis(metrics: _Json, axis: str) -> str:
    groups = metrics["subgroups"].get(axis, {}).get("groups", {})
    if len(groups) < 2:
        return ""
    labels = [label for label in metrics["labels"] if any(group["labels"][label]["auc"] for group in groups.values())]
    rows = [(_name(label), *(shown(group["labels"][label]["auc"]) for group in groups.values())) for label in labels]
    rows.append(("**mean of the findings measured in all**", *(shown(g["mean_of_findings"]) for g in groups.values())))
    heads = (
        f"AUC by {axis}",
        *(f"{name} ({g['images']} images, {g['patients']} patients)" for name, g in groups.items()),
    )
    return _table(heads, rows)


def _overfitting(metrics: _Json) -> str:
    found = metrics["overfitting"]
    return "" if found is None else overfitting_table(found, shown)


def overfitting_table(found: _Json, figure: Callable[[Any], str]) -> str:
    """Return the table of in-sample and out-of-fold AUCs; `figure` writes an estimate of `found`."""
    rows = [
        (_name(label), figure(found["in_sample"][label]), figure(found["out_of_fold"][label]), figure(gap))
        for label, gap in found["gap"].items()
    ]
    return (
        f"Overfitting: mean AUC of the members on images that they trained on, and on images of their own fold, of"
        f" {found['images']} training images.\n\n" + _table(("output", "in-sample", "out of fold", "gap"), rows)
    )


def _matched(metrics: _Json) -> str:
    found = metrics["matched"]
    if found is None:
        return ""
    margins = "; ".join(
        f"{margin}: {', '.join(f'{category} {share:.0%}' for category, share in shares.items())}"
        for margin, shares in found["target"].items()
    )
    rows = [
        (_name(label), shown(auc), shown(found["rates"][label]["ppv"]), shown(found["called"][label]))
        for label, auc in found["auc"].items()
    ]
    return (
        f"Reweighted to a target population ({margins}); the images count as {found['effective_images']:.0f} equally"
        f" weighted ones. Mean AUC of the findings: {shown(found['mean_of_findings'])}.\n\n"
        + _table(("output", "AUC", "PPV at the default point", "share called positive"), rows)
    )


def _localisation(metrics: _Json) -> str:
    found = metrics["localisation"]
    if not found:
        return ""
    rows = [
        (
            _name(label), str(result["images"]), shown(result["rate"]), shown(result["centre_rate"]),
            shown(result["mean_box_rate"]), shown(result["rate_gain"]), shown(result["share_inside"]),
            f"{result['flat_share']:.3f}", shown(result["mean_box_share"]),
        )
        for label, result in found.items()
    ]  # fmt: skip
    heads = (
        "finding", "images with boxes", "hit rate", "image centre", "mean box", "hit rate minus mean box",
        "share of the map inside", "flat map", "mean box, share inside",
    )  # fmt: skip
    return (
        "Localisation against radiologists' boxes: hit rate of the map's highest point, and share of its positive"
        " values inside the boxes, beside baselines that see no image. The mean box is that of the finding in other"
        f" patients' images. {_verdict(found['all'])}\n\n" + _table(heads, rows)
    )


def _verdict(everything: _Json) -> str:
    gain = everything["rate_gain"]
    if gain is None:
        return "There are too few boxes to compare maps with the mean box."
    if gain["low"] > 0:
        return "Over all findings the maps are better than the mean box."
    if gain["high"] < 0:
        return "Over all findings the maps are **worse than the mean box**."
    return "Over all findings the maps are not distinguishable from the mean box."


def _unlabelled(stored: StoredEvaluation) -> str:
    metrics = stored.metrics
    groups = metrics["unlabelled"]
    first = next(iter(next(iter(groups.values()))["called"]))
    points = list(next(iter(groups.values()))["called"][first])
    rows = [
        (
            name,
            str(group["images"]),
            str(group["patients"]),
            *(shown(group["called"][first][point]) for point in points),
        )
        for name, group in groups.items()
    ]
    known = f" {metrics['known']}" if metrics.get("known") else ""
    return (
        f"{UNLABELLED}{stored.title}\n\n"
        f"{groups['all']['images']} images of {groups['all']['patients']} patients, without labels.{known} Share of"
        f" images called positive for {first} at each operating point, with 95 % intervals by patient:\n\n"
        + _table(("view", "images", "patients", *points), rows)
    )


def shown(estimate: _Json | None) -> str:
    """Return a stored estimate with its interval, or a dash."""
    if estimate is None:
        return "-"
    joint = " to " if estimate["low"] < 0 else "-"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f}{joint}{estimate['high']:.3f})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def _name(label: str) -> str:
    return label.replace("_", " ")
