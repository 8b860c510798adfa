"""Records and a configuration for the tests of tracking."""

from dataclasses import replace

from modeling.config import TrainingConfig
from modeling.tracking.history import EpochRecord

RECORD = EpochRecord(
    fold=0,
    epoch=1,
    loss=0.5,
    held_out_loss=0.6,
    abnormality_auc=0.7,
    findings_auc=0.75,
    rate=1e-3,
    images_per_s=89.5,
    seconds=12.25,
    finished_at="2026-01-02T03:04:05+00:00",
)


def records(*, folds: int, epochs: int) -> list[EpochRecord]:
    """Epochs outside, folds inside, as a run makes them; fold 1's loss lies one above fold 0's."""
    return [
        replace(RECORD, fold=fold, epoch=epoch, loss=fold + 1 / epoch)
        for epoch in range(1, epochs + 1)
        for fold in range(folds)
    ]


def configuration(**sections: object) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "bundle": {"name": "tracked", "version": "1", "undetermined_spread": 0.2, "note": "Of two folds."},
            "input": {"side": 64},
            "model": {"backbone": "baseline-cnn"},
            "loss": {"kind": "focal", "gamma": 2, "alpha": 0.75},
            "optimiser": {"kind": "adam"},
            "schedule": {"kind": "constant", "rate": 1e-3},
            "train": {"folds": 2, "epochs": 3, "batch_size": 4, "seed": 1},
            **sections,
        }
    )
