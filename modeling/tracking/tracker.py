"""Where a run is followed besides its own folder, whatever that place is."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from dicomnode.domain.errors import ConfigurationError
from modeling.config import TrackingSection, TrainingConfig
from modeling.tracking.history import EpochRecord

INSTALL = "pip install 'cxrnode[mlflow]'"


class Tracker(Protocol):
    """What a run tells. No call waits for a server but the last, none fails, and each may be repeated."""

    def begin(self, config: TrainingConfig, facts: Mapping[str, str]) -> None:
        """Tell that the run begins or goes on. `facts`: what the configuration does not say, such as devices."""

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Tell all finished epochs of all folds, also those told before."""

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Tell that the run is complete, what it reached, and the files that say more."""

    def stop(self) -> None:
        """Tell that the run was left before its end; it may go on later. After `finish` it says nothing."""


class NoTracker:
    """Follows nothing."""

    def begin(self, config: TrainingConfig, facts: Mapping[str, str]) -> None:
        """Do nothing."""

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Do nothing."""

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


def open_tracker(settings: TrackingSection, folder: Path) -> Tracker:
    """Return what follows the run in `folder`.

    Raises: ConfigurationError when MLflow is asked for and not installed, or its address is none.
    """
    if not settings.mlflow:
        return NoTracker()
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigurationError(f"tracking.mlflow needs MLflow, which is not installed: {INSTALL}")
    from modeling.tracking.mlflow import open_mlflow

    return open_mlflow(settings, folder)
