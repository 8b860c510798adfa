"""Results for other populations: patients by history, a target population, and members on their own training images."""

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.terminology import ABNORMALITY
from modeling.evaluation.intervals import Resampler, Values, estimate_of
from modeling.evaluation.measures import auc, rates_at, share_of
from modeling.evaluation.predictions import Predictions
from modeling.evaluation.results import HistoryResult, MatchedResult, OverfittingResult, Unconfounded
from modeling.metrics import MIN_POSITIVES, BoolArray, Estimate
from modeling.preparation.tables import Entry, image_key, read_table

EVER_ILL, NEVER_ILL = "ever ill", "never ill"
LEAST_SOURCE_FREQUENCY = 0.05
VIEW, IMAGES_PER_PATIENT, PREVALENCE = "view", "images_per_patient", "prevalence"
_BANDS = (("1", 1), ("2-4", 4), ("5-9", 9))
_LAST_BAND = "10+"
_RAKING_ROUNDS = 500
_RAKING_TOLERANCE = 1e-6
_PRESENT, _ABSENT = "present", "absent"
_UNKNOWN = "unknown"
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A population to match: the share of images by margin, then by category.

    Margins are the view, bands of the number of images per patient, and the prevalence of labels.
    """

    margins: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedFolds:
    """The fold of each image of a run, by `image_key`; the member of a fold did not train on the fold's images."""

    fold_of: Mapping[str, int]


def patients_ever_ill(entries: Iterable[Entry]) -> frozenset[str]:
    """Return the patients of whom any row names a finding."""
    return frozenset(entry.patient for entry in entries if entry.findings)


def by_history(
    predictions: Predictions, ever_ill: frozenset[str], thresholds: Mapping[str, float], resampler: Resampler
) -> HistoryResult | None:
    """Return the abnormality head's results apart for ever-ill and never-ill patients; None without such a head.

    `thresholds`: the head's, by operating point.
    """
    if ABNORMALITY not in predictions.labels:
        return None
    index = predictions.labels.index(ABNORMALITY)
    truth, probability = predictions.truth[:, index], predictions.probability[:, index]
    # A patient of a positive image was ill, also where the table of all images does not have the row.
    known = ever_ill | set(predictions.patients[truth].tolist())
    ill = np.isin(predictions.patients, sorted(known))
    groups = {EVER_ILL: ill, NEVER_ILL: ~ill}
    specificity = {
        point: {name: _specificity(truth, probability >= threshold, rows, resampler) for name, rows in groups.items()}
        for point, threshold in thresholds.items()
    }
    return HistoryResult(
        positives=int(truth.sum()),
        negatives={name: int((rows & ~truth).sum()) for name, rows in groups.items()},
        patients={name: len(set(predictions.patients[rows].tolist())) for name, rows in groups.items()},
        auc={name: _auc_among(truth, probability, truth | rows, resampler) for name, rows in groups.items()},
        specificity=specificity,
        findings_ever_ill=_mean_auc_of_findings(predictions, ill, resampler),
    )


def without_confounded(
    predictions: Predictions, aucs: Mapping[str, Values], least: float = LEAST_SOURCE_FREQUENCY
) -> Unconfounded | None:
    """Return the mean over findings that no source nearly lacks; None when fewer than two sources are known.

    `aucs`: bootstrap values of the findings that have an AUC. Sources with fewer images than `MIN_POSITIVES` do not
    decide.
    """
    sources = Counter(source for source in predictions.sources.tolist() if source)
    decisive = [source for source, images in sources.items() if images >= MIN_POSITIVES]
    if len(decisive) < 2:
        return None
    frequency = np.stack([predictions.truth[predictions.sources == source].mean(axis=0) for source in decisive])
    lacking = (frequency < least * frequency.max(axis=0)).any(axis=0)
    confounded = {label for label, is_lacking in zip(predictions.labels, lacking, strict=True) if is_lacking}
    chosen = tuple(label for label in aucs if label != ABNORMALITY and label not in confounded)
    mean = estimate_of(np.mean([aucs[label] for label in chosen], axis=0)) if chosen else None
    return Unconfounded(
        confounded=tuple(label for label in predictions.labels if label in confounded), labels=chosen, auc=mean
    )


def read_target(path: Path) -> Target:
    """Read a target population: a TOML file of shares, or a label table whose shares are counted.

    Raises: ConfigurationError when the file cannot be read or a share is not one.
    """
    return _counted_target(path) if path.suffix.lower() != ".toml" else _written_target(path)


def matched(
    predictions: Predictions, target: Target, thresholds: Mapping[str, float], resampler: Resampler
) -> MatchedResult:
    """Return results with the images reweighted so that every margin has the target's shares.

    The weights come from raking (iterative proportional fitting). `thresholds`: the labels' default ones.

    Raises: ConfigurationError when the target has images of a kind that is not among those evaluated.
    """
    weights = raked(_categories(predictions, target), target)
    weighted = resampler.weighted(weights)
    everything = np.ones(len(weights), dtype=bool)
    aucs: dict[str, Estimate | None] = {}
    curves: list[Values] = []
    for index, label in enumerate(predictions.labels):
        truth, probability = predictions.truth[:, index], predictions.probability[:, index]
        aucs[label] = _auc_among(truth, probability, everything, weighted)
        if aucs[label] is not None and label != ABNORMALITY:
            curves.append(weighted.values(auc(truth, probability)))
    flagged = {
        label: predictions.probability[:, at] >= thresholds[label] for at, label in enumerate(predictions.labels)
    }
    return MatchedResult(
        target=target.margins,
        effective_images=float(weights.sum() ** 2 / np.square(weights).sum()),
        auc=aucs,
        mean_of_findings=estimate_of(np.mean(curves, axis=0)) if curves else None,
        rates={
            label: rates_at(predictions.truth[:, at], flagged[label], weighted)
            for at, label in enumerate(predictions.labels)
        },
        called={label: weighted.estimate(share_of(flagged[label])) for label in predictions.labels},
    )


def raked(categories: Mapping[str, npt.NDArray[np.str_]], target: Target) -> Values:
    """Return (N,) weights of mean 1 with which every margin has the target's shares.

    `categories`: for each margin of the target, (N,) the category of each image; images of a category that the target
    does not name get weight 0. Source: Deming and Stephan, Annals of Mathematical Statistics 11 (1940) 427.

    Raises: ConfigurationError when a wanted category has no image, or no weights satisfy all margins.
    """
    images = len(next(iter(categories.values())))
    weights = np.full(images, 1.0 / images)
    for _ in range(_RAKING_ROUNDS):
        largest_change = 0.0
        for margin, wanted in target.margins.items():
            factors = np.zeros(images)
            for category, share in wanted.items():
                rows = categories[margin] == category
                present = float(weights[rows].sum())
                if share > 0 and present <= 0:
                    raise ConfigurationError(
                        f"the target has {share:.1%} of {margin} {category!r}, but no such image is evaluated"
                    )
                factors[rows] = share / present if present > 0 else 0.0
                largest_change = max(largest_change, abs(share - present))
            weights = weights * factors
        if largest_change < _RAKING_TOLERANCE:
            return np.asarray(weights * images / weights.sum())
    raise ConfigurationError("no weights of the evaluated images satisfy all margins of the target population")


def overfitting(predictions: Predictions, trained: TrainedFolds, resampler: Resampler) -> OverfittingResult | None:
    """Return AUCs of members on their own training images and on images of their fold; None without images of the run.

    Raises: ConfigurationError when the run has other folds than the bundle has members.
    """
    fold = np.array([trained.fold_of.get(image_key(name), -1) for name in predictions.images.tolist()])
    members = predictions.members.shape[1]
    if not (fold >= 0).any():
        return None
    if max(trained.fold_of.values()) + 1 != members:
        raise ConfigurationError(
            f"the run has {max(trained.fold_of.values()) + 1} folds, but the bundle has {members} members"
        )
    in_sample: dict[str, Estimate | None] = {}
    out_of_fold: dict[str, Estimate | None] = {}
    gap: dict[str, Estimate | None] = {}
    for at, label in enumerate(predictions.labels):
        truth, scores = predictions.truth[:, at], predictions.members[:, :, at]
        inside = [(fold >= 0) & (fold != member) for member in range(members)]
        outside = [fold == member for member in range(members)]
        in_sample[label], out_of_fold[label], gap[label] = gap_between(truth, scores, inside, outside, resampler)
    return OverfittingResult(images=int((fold >= 0).sum()), in_sample=in_sample, out_of_fold=out_of_fold, gap=gap)


def gap_between(
    truth: BoolArray, scores: Values, inside: Sequence[BoolArray], outside: Sequence[BoolArray], resampler: Resampler
) -> tuple[Estimate | None, Estimate | None, Estimate | None]:
    """Return the members' mean AUC on their own training images, that on other images, and the difference.

    `scores`: (N, members); `inside`, `outside`: for each member, (N,) which images it trained on and which it did not.
    """
    trained, other = (_member_mean(truth, scores, rows, resampler) for rows in (inside, outside))
    return (
        None if trained is None else estimate_of(trained),
        None if other is None else estimate_of(other),
        None if trained is None or other is None else estimate_of(trained - other),
    )


def _member_mean(truth: BoolArray, scores: Values, rows: Sequence[BoolArray], resampler: Resampler) -> Values | None:
    """Return the bootstrap of the mean of members' AUCs, each on its own rows; None when one has too few images."""
    least = min(min(int(truth[chosen].sum()), int((~truth[chosen]).sum())) for chosen in rows)
    if least < max(1, MIN_POSITIVES // len(rows)):
        return None
    values = [
        resampler.values(auc(truth[chosen], scores[chosen, member]), chosen) for member, chosen in enumerate(rows)
    ]
    return np.asarray(np.mean(values, axis=0))


def _auc_among(truth: BoolArray, probability: Values, rows: BoolArray, resampler: Resampler) -> Estimate | None:
    chosen = truth[rows]
    if min(int(chosen.sum()), int((~chosen).sum())) < MIN_POSITIVES:
        return None
    return resampler.estimate(auc(chosen, probability[rows]), rows)


def _specificity(truth: BoolArray, flagged: BoolArray, rows: BoolArray, resampler: Resampler) -> Estimate | None:
    negatives = rows & ~truth
    if int(negatives.sum()) < MIN_POSITIVES:
        return None
    return resampler.estimate(share_of(~flagged[negatives]), negatives)


def _mean_auc_of_findings(predictions: Predictions, rows: BoolArray, resampler: Resampler) -> Estimate | None:
    curves = []
    for at, label in enumerate(predictions.labels):
        truth = predictions.truth[rows, at]
        if label != ABNORMALITY and min(int(truth.sum()), int((~truth).sum())) >= MIN_POSITIVES:
            curves.append(resampler.values(auc(truth, predictions.probability[rows, at]), rows))
    return estimate_of(np.mean(curves, axis=0)) if curves else None


def _categories(predictions: Predictions, target: Target) -> dict[str, npt.NDArray[np.str_]]:
    found: dict[str, npt.NDArray[np.str_]] = {}
    for margin in target.margins:
        if margin == VIEW:
            found[margin] = np.array([view or _UNKNOWN for view in predictions.views.tolist()])
        elif margin == IMAGES_PER_PATIENT:
            counts = Counter(predictions.patients.tolist())
            found[margin] = np.array([_band(counts[patient]) for patient in predictions.patients.tolist()])
        else:
            label = margin.removeprefix(f"{PREVALENCE}.")
            if label not in predictions.labels:
                raise ConfigurationError(f"the target names the prevalence of {label}, which the bundle does not have")
            truth = predictions.truth[:, predictions.labels.index(label)]
            found[margin] = np.where(truth, _PRESENT, _ABSENT)
    return found


def _band(images: int) -> str:
    for name, most in _BANDS:
        if images <= most:
            return name
    return _LAST_BAND


class _TargetFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    view: dict[str, Share] = {}
    images_per_patient: dict[Literal["1", "2-4", "5-9", "10+"], Share] = {}
    prevalence: dict[str, Share] = {}


def _written_target(path: Path) -> Target:
    try:
        written = _TargetFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    margins = {
        f"{PREVALENCE}.{label}": {_PRESENT: share, _ABSENT: 1 - share} for label, share in written.prevalence.items()
    }
    for name, shares in ((VIEW, written.view), (IMAGES_PER_PATIENT, dict(written.images_per_patient))):
        if shares:
            margins[name] = _normalised({str(key): share for key, share in shares.items()}, f"{path}: {name}")
    if not margins:
        raise ConfigurationError(f"{path} names no share of {VIEW}, {IMAGES_PER_PATIENT} or {PREVALENCE}")
    return Target(margins=margins)


def _normalised(shares: Mapping[str, float], where: str) -> dict[str, float]:
    total = sum(shares.values())
    if abs(total - 1) > 0.01:
        raise ConfigurationError(f"{where}: the shares sum to {total:g}, not to 1")
    return {name: share / total for name, share in shares.items()}


def _counted_target(path: Path) -> Target:
    entries = read_table(path).entries
    if not entries:
        raise ConfigurationError(f"{path} has no usable row")
    counts = Counter(entry.patient for entry in entries)
    views = Counter(entry.view.upper() if entry.view else _UNKNOWN for entry in entries)
    bands = Counter(_band(counts[entry.patient]) for entry in entries)
    margins = {VIEW: _portions(views, len(entries)), IMAGES_PER_PATIENT: _portions(bands, len(entries))}
    ill = sum(bool(entry.findings) for entry in entries) / len(entries)
    margins[f"{PREVALENCE}.{ABNORMALITY}"] = {_PRESENT: ill, _ABSENT: 1 - ill}
    return Target(margins=margins)


def _portions(counts: Counter[str], total: int) -> dict[str, float]:
    return {name: number / total for name, number in sorted(counts.items())}
