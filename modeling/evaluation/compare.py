"""Compares several evaluations of the same images: differences in AUC, with intervals and a test."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.terminology import ABNORMALITY
from modeling.evaluation import measures
from modeling.evaluation.assess import measurable
from modeling.evaluation.intervals import PairedAucs, Resampler, Values, compare_aucs, estimate_of
from modeling.evaluation.plots import save_intervals
from modeling.evaluation.predictions import Predictions, read_predictions
from modeling.evaluation.report import Document, brief, shown
from modeling.metrics import MIN_POSITIVES, Estimate

COMPARISON, TABLE, REPORT = "comparison.json", "comparison.csv", "comparison.html"
MEAN = "mean of findings"
_BootstrapAucs = dict[str, Values]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotShared:
    """Images and labels of one run that another run lacks; they are left out."""

    run: str
    images: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Second minus first, of one label's AUC. `bootstrap` draws patients; `delong` takes images as independent.

    `delong` is None for the mean of the findings, to which the test does not apply.
    """

    first: str
    second: str
    label: str
    bootstrap: Estimate
    delong: PairedAucs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs on their shared images; `aucs` by run, then label, None with too few positives."""

    runs: tuple[str, ...]
    images: int
    patients: int
    positives: dict[str, int]
    aucs: dict[str, dict[str, Estimate | None]]
    differences: tuple[Difference, ...]
    not_shared: tuple[NotShared, ...]


def compare(folders: Sequence[Path], *, rounds: int, seed: int, stage: Callable[[str], None]) -> Comparison:
    """Compare evaluations, joined by image name.

    Raises: ConfigurationError when they share no image or label, or when their labels of an image differ.
    """
    names = _names(folders)
    runs = dict(zip(names, map(read_predictions, folders), strict=True))
    images, labels, not_shared = _shared(runs)
    aligned = {name: _aligned(run, images, labels) for name, run in runs.items()}
    reference = aligned[names[0]]
    for name in names[1:]:
        _require_same_truth(reference, aligned[name], names[0], name)
    resampler = Resampler(reference.patients, rounds=rounds, seed=seed)
    curves: dict[str, _BootstrapAucs] = {}
    for name, run in aligned.items():
        stage(f"measuring {name}")
        curves[name] = _curves(run, resampler)
    return Comparison(
        runs=names,
        images=len(images),
        patients=resampler.patients,
        positives={label: int(reference.truth[:, at].sum()) for at, label in enumerate(labels)},
        aucs={
            name: {
                label: estimate_of(curves[name][label]) if label in curves[name] else None for label in (*labels, MEAN)
            }
            for name in names
        },
        differences=tuple(
            difference
            for first, second in combinations(names, 2)
            for difference in _differences((first, second), aligned, curves)
        ),
        not_shared=not_shared,
    )


def write_comparison(out: Path, comparison: Comparison) -> None:
    """Write the comparison as JSON, as a table, as two plots and as a report.

    Raises: ConfigurationError when the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"results cannot be written to {out}: {error.strerror}") from error
    (out / COMPARISON).write_text(json.dumps(asdict(comparison), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _write_table(out / TABLE, comparison)
    labels = (*comparison.positives, MEAN)
    aucs = {name: [of_run[label] for label in labels] for name, of_run in comparison.aucs.items()}
    pictures = {
        "AUC of each run, with 95 % intervals": save_intervals(
            out / "auc.png", labels, aucs, "AUC (95 % interval)", reference=0.5
        )
    }
    by_pair: dict[str, dict[str, Estimate]] = {}
    for difference in comparison.differences:
        by_pair.setdefault(f"{difference.second} - {difference.first}", {})[difference.label] = difference.bootstrap
    if by_pair:
        series = {pair: [of_pair.get(label) for label in labels] for pair, of_pair in by_pair.items()}
        pictures["Difference in AUC, with 95 % intervals of patients drawn together for both runs"] = save_intervals(
            out / "differences.png", labels, series, "difference in AUC (95 % interval)", reference=0.0
        )
    _write_report(out / REPORT, comparison, pictures)


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the folders' own names, or whole paths where those are alike."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigurationError("the same run is given twice")
    if len(folders) < 2:
        raise ConfigurationError("a comparison needs two runs at least")
    counted = Counter(folder.resolve().name for folder in folders)
    return tuple(folder.resolve().name if counted[folder.resolve().name] == 1 else str(folder) for folder in folders)


def _shared(runs: dict[str, Predictions]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[NotShared, ...]]:
    """Return the shared images and labels, and what each run has besides."""
    sets = {name: set(run.images.tolist()) for name, run in runs.items()}
    for name, run in runs.items():
        if len(sets[name]) < len(run.images):
            raise ConfigurationError(f"{name} predicts an image twice")
    common = set.intersection(*sets.values())
    common_labels = set.intersection(*(set(run.labels) for run in runs.values()))
    if not common or not common_labels:
        raise ConfigurationError(f"the runs share no {'label' if common else 'image'}")
    first = next(iter(runs.values()))
    left_out = tuple(
        NotShared(
            run=name,
            images=tuple(sorted(sets[name] - common)),
            labels=tuple(label for label in run.labels if label not in common_labels),
        )
        for name, run in runs.items()
        if sets[name] - common or set(run.labels) - common_labels
    )
    return tuple(sorted(common)), tuple(label for label in first.labels if label in common_labels), left_out


def _aligned(run: Predictions, images: Sequence[str], labels: Sequence[str]) -> Predictions:
    row_of = {str(name): row for row, name in enumerate(run.images)}
    columns = [run.labels.index(label) for label in labels]
    chosen = run.rows(np.array([row_of[name] for name in images]))
    return Predictions(
        labels=tuple(labels),
        images=chosen.images,
        patients=chosen.patients,
        views=chosen.views,
        sexes=chosen.sexes,
        ages=chosen.ages,
        gate=chosen.gate,
        sources=chosen.sources,
        truth=chosen.truth[:, columns],
        probability=chosen.probability[:, columns],
        members=chosen.members[:, :, columns],
    )


def _require_same_truth(first: Predictions, second: Predictions, *names: str) -> None:
    other = (first.truth != second.truth).any(axis=1) | (first.patients != second.patients)
    if other.any():
        example = first.images[int(np.argmax(other))]
        raise ConfigurationError(
            f"{names[0]} and {names[1]} have other labels or patients for {int(other.sum())} images, such as {example}"
        )


def _curves(run: Predictions, resampler: Resampler) -> _BootstrapAucs:
    """Return the bootstrap's AUCs by label, the sample's own first, and those of the mean of the findings."""
    curves = {
        label: resampler.values(measures.auc(run.truth[:, at], run.probability[:, at]))
        for at, label in enumerate(run.labels)
        if measurable(run.truth[:, at])
    }
    findings = [values for label, values in curves.items() if label != ABNORMALITY]
    return curves | ({MEAN: np.mean(findings, axis=0)} if findings else {})


def _differences(
    pair: tuple[str, str], runs: dict[str, Predictions], curves: dict[str, _BootstrapAucs]
) -> list[Difference]:
    first, second = pair
    found = []
    for label, values in curves[first].items():
        difference = estimate_of(curves[second][label] - values)
        if difference is None:
            continue
        delong = None
        if label != MEAN:
            at = runs[first].labels.index(label)
            delong = compare_aucs(
                runs[first].truth[:, at], runs[first].probability[:, at], runs[second].probability[:, at]
            )
        found.append(Difference(first=first, second=second, label=label, bootstrap=difference, delong=delong))
    return found


def _write_table(path: Path, comparison: Comparison) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("first", "second", "label", "difference", "low", "high", "delong_se", "delong_p"))
        for difference in comparison.differences:
            interval = (
                f"{value:.6g}"
                for value in (difference.bootstrap.value, difference.bootstrap.low, difference.bootstrap.high)
            )
            test = (
                ("", "") if difference.delong is None else (difference.delong.standard_error, difference.delong.p_value)
            )
            writer.writerow((difference.first, difference.second, difference.label, *interval, *test))


def _write_report(path: Path, comparison: Comparison, pictures: dict[str, Path]) -> None:
    document = Document("Comparison: " + ", ".join(comparison.runs))
    document.paragraph(f"{comparison.images} images of {comparison.patients} patients, in every run.")
    for missing in comparison.not_shared:
        labels = f" and the labels {', '.join(missing.labels)}" if missing.labels else ""
        document.paragraph(f"Left out, being in {missing.run} but not in all: {len(missing.images)} images{labels}.")
    document.heading("AUC")
    rows = [
        (
            label.replace("_", " "),
            str(comparison.positives.get(label, "")),
            *(shown(comparison.aucs[run][label]) for run in comparison.runs),
        )
        for label in (*comparison.positives, MEAN)
    ]
    document.table(("label", "positives", *comparison.runs), rows)
    document.paragraph(
        f"A dash is what cannot be measured: an AUC needs at least {MIN_POSITIVES} images with and {MIN_POSITIVES} "
        "without the label.",
        note=True,
    )
    document.heading("Differences")
    changes = [
        (
            f"{difference.second} - {difference.first}: {difference.label.replace('_', ' ')}",
            shown(difference.bootstrap),
            brief(None if difference.delong is None else difference.delong.standard_error),
            brief(None) if difference.delong is None else f"{difference.delong.p_value:.2g}",
        )
        for difference in comparison.differences
    ]
    document.table(("difference in AUC", "bootstrap of patients", "DeLong: standard error", "DeLong: p"), changes)
    document.paragraph(
        "The intervals draw whole patients, the same for both runs. DeLong's test takes images as independent, so "
        "where patients have several images it is too certain. No correction is made for the number of labels.",
        note=True,
    )
    document.pictures(pictures)
    document.write(path)
