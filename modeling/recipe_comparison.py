"""Several recipes compared on images that none of them trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.config import ApplicationModel, ModelSection, TrainingConfig
from modeling.metrics import Estimate, bootstrap_aucs, estimate, label_aucs, mean_auc
from modeling.run import OUT_OF_FOLD, Run, described, fold_records, read_arrays
from modeling.tracking.history import EpochRecord

ROUNDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """One run's held-out predictions: logits (N, outputs) of `names`, NaN where the image's fold was not trained.

    `warm`: whether it began with other weights than random ones.
    """

    config: TrainingConfig
    warm: bool
    names: npt.NDArray[np.str_]
    logits: FloatArray
    records: tuple[EpochRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRow:
    """One recipe on the images that all of them were judged on; differences are from the first recipe's."""

    config: TrainingConfig
    warm: bool
    epochs: int
    images_seen: int
    minutes: float
    abnormality: Estimate | None
    findings: Estimate | None
    abnormality_difference: Estimate | None
    findings_difference: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeComparison:
    """Recipes on the same held-out images of the same patients."""

    images: int
    patients: int
    rows: tuple[RecipeRow, ...]


def read_held_out(folder: Path) -> HeldOut:
    """Read the held-out predictions of a run.

    Raises: ConfigurationError when the folder holds no run, or it has predicted nothing yet.
    """
    config, sources = described(folder)
    arrays = read_arrays(folder / OUT_OF_FOLD, only=("names", "logits"))
    return HeldOut(
        config=config,
        warm=sources.warm_start is not None or _is_pretrained(config.model),
        names=arrays["names"],
        logits=arrays["logits"],
        records=fold_records(folder, config.train.folds),
    )


def _is_pretrained(model: ModelSection) -> bool:
    return isinstance(model, ApplicationModel) and model.weights != "random"


def compared(run: Run, judged: FloatArray, others: Sequence[HeldOut]) -> RecipeComparison | None:
    """Compare runs on the images that each of them predicted, the first being the reference; None without any.

    `judged`: (N, outputs) labels of `run`, NaN where an image says nothing of a label. A run of the abnormality alone
    has no findings to compare.

    Raises: ConfigurationError when the runs have no image in common.
    """
    if not others:
        return None
    names = np.array(run.radiographs.names)
    aligned = [_aligned(other, names) for other in others]
    shared = np.logical_and.reduce([~np.isnan(logits[:, 0]) for logits in aligned])
    if not shared.any():
        raise ConfigurationError("the runs to compare predicted no image in common")
    labels, patients = judged[shared], run.radiographs.patients[shared]
    values, draws = [], []
    for logits in aligned:
        # The same seed draws the same patients for each, so that differences are paired.
        known = labels[:, : logits.shape[1]]
        drawn = bootstrap_aucs(known, logits[shared], patients, rounds=ROUNDS, seed=run.config.train.seed)
        values.append(_summary(label_aucs(known, logits[shared])[np.newaxis])[0])
        draws.append(_summary(drawn))
    rows = tuple(_row(other, values, draws, at) for at, other in enumerate(others))
    return RecipeComparison(images=int(shared.sum()), patients=len(set(patients)), rows=rows)


def _row(
    other: HeldOut, values: list[npt.NDArray[np.float64]], draws: list[npt.NDArray[np.float64]], at: int
) -> RecipeRow:
    estimates = [estimate(float(values[at][c]), draws[at][:, c]) for c in range(2)]
    gaps = [estimate(float(values[at][c] - values[0][c]), draws[at][:, c] - draws[0][:, c]) for c in range(2)]
    return RecipeRow(
        config=other.config,
        warm=other.warm,
        epochs=max((record.epoch for record in other.records), default=0),
        images_seen=round(sum(record.images_per_s * record.seconds for record in other.records)),
        minutes=sum(record.seconds for record in other.records) / 60,
        abnormality=estimates[0],
        findings=estimates[1],
        abnormality_difference=gaps[0] if at else None,
        findings_difference=gaps[1] if at else None,
    )


def _summary(aucs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return (rounds, 2): the AUC of the abnormality, and the mean of the findings' AUCs."""
    return np.stack([aucs[:, 0], np.array([mean_auc(row[1:]) for row in aucs])], axis=1)


def _aligned(run: HeldOut, names: npt.NDArray[np.str_]) -> FloatArray:
    """Return (N, outputs) logits in the order of `names`, NaN where there is none."""
    at = {name: index for index, name in enumerate(run.names)}
    rows = np.array([at.get(name, -1) for name in names])
    return np.where(rows[:, np.newaxis] < 0, np.nan, run.logits[rows]).astype(np.float32)
