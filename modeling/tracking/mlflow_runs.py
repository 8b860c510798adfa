"""The MLflow runs of one training run: asks MLflow what it already has, and logs the rest.

Importing this module imports MLflow, which reads its environment then: `mlflow.open_mlflow` does both in order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from modeling.files import write_durably
from modeling.tracking.history import EpochRecord
from modeling.tracking.tracker import RunEnd, RunStart, RunState

KEPT = "mlflow.json"
METRICS = ("loss", "held_out_loss", "abnormality_auc", "findings_auc", "rate", "images_per_s", "seconds")
_MEAN_METRICS = METRICS[:4]
_BATCH = 500
_LONGEST_VALUE = 500
_PARENT, _NOTE = "mlflow.parentRunId", "mlflow.note.content"


@dataclass(slots=True, kw_only=True)
class _Kept:
    """The identifiers of the runs in the store at `address`: the training's, and each fold's by its number."""

    address: str
    parent: str
    folds: dict[str, str] = field(default_factory=dict)


class MlflowRuns:
    """The runs of the training in `folder`, in the store at `address`. Every call raises what MLflow raises.

    `files`: where a new experiment keeps them when the store does not decide that.
    """

    def __init__(self, client: MlflowClient, experiment: str, folder: Path, *, address: str, files: str | None) -> None:
        self._client, self._experiment, self._files = client, experiment, files
        self._file, self._address = folder / KEPT, address
        self._kept: _Kept | None = None
        self._logged: dict[str, set[tuple[str, int]]] = {}

    def bring_to(self, wanted: RunState) -> None:
        """Log what MLflow lacks."""
        kept = self._opened(wanted.start)
        for fold in sorted({record.fold for record in wanted.records}):
            self._log(self._fold(kept, fold), _of_fold(wanted.records, fold))
        self._log(kept.parent, _means(wanted.records, wanted.start.config.train.folds))
        if wanted.end is not None:
            self._close(kept, wanted.end)

    def _opened(self, start: RunStart) -> _Kept:
        if self._kept is not None:
            return self._kept
        kept = self._read()
        if kept is None or not self._is_there(kept.parent):
            bundle = start.config.bundle
            tags = {_NOTE: bundle.note} if bundle.note else {}
            kept = _Kept(address=self._address, parent=self._create(f"{bundle.name} {bundle.version}", tags))
            self._write(kept)
        else:
            kept.folds = {fold: run for fold, run in kept.folds.items() if self._is_there(run)}
            for run in (kept.parent, *kept.folds.values()):
                self._client.update_run(run, status="RUNNING")
        self._describe(kept.parent, start.parameters)
        self._kept = kept
        return kept

    def _describe(self, run: str, parameters: Mapping[str, str]) -> None:
        """Log parameters; one that was another before the run went on, such as the devices, becomes a tag."""
        cut = {name: value[:_LONGEST_VALUE] for name, value in parameters.items()}
        former = self._client.get_run(run).data.params
        new = [Param(name, value) for name, value in cut.items() if name not in former]
        changed = [RunTag(name, value) for name, value in cut.items() if former.get(name, value) != value]
        for at in range(0, len(new), 100):
            self._client.log_batch(run, params=new[at : at + 100])
        self._client.log_batch(run, tags=changed)

    def _fold(self, kept: _Kept, fold: int) -> str:
        if str(fold) not in kept.folds:
            kept.folds[str(fold)] = self._create(f"fold {fold}", {_PARENT: kept.parent, "fold": str(fold)})
            self._write(kept)
        return kept.folds[str(fold)]

    def _log(self, run: str, metrics: Sequence[Metric]) -> None:
        # Taken out, and put back when all is logged: after a failure only MLflow knows what has arrived.
        logged = self._logged.pop(run, None)
        if logged is None:
            logged = self._steps(run)
        missing = [metric for metric in metrics if (metric.key, metric.step) not in logged]
        for at in range(0, len(missing), _BATCH):
            self._client.log_batch(run, metrics=missing[at : at + _BATCH])
        self._logged[run] = logged | {(metric.key, metric.step) for metric in missing}

    def _steps(self, run: str) -> set[tuple[str, int]]:
        known = [name for name in self._client.get_run(run).data.metrics if name in METRICS]
        return {(name, metric.step) for name in known for metric in self._client.get_metric_history(run, name)}

    def _close(self, kept: _Kept, end: RunEnd) -> None:
        known = self._client.get_run(kept.parent).data.metrics
        for name, value in end.metrics.items():
            if known.get(name) != value:
                self._client.log_metric(kept.parent, name, value)
        for path in end.files:
            if path.is_dir():
                self._client.log_artifacts(kept.parent, str(path), path.name)
            else:
                self._client.log_artifact(kept.parent, str(path))
        for run in (*kept.folds.values(), kept.parent):
            self._client.set_terminated(run, status=end.status)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment_id(), run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._experiment, artifact_location=self._files))

    def _is_there(self, run: str) -> bool:
        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _read(self) -> _Kept | None:
        try:
            kept = _Kept(**json.loads(self._file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return kept if kept.address == self._address else None

    def _write(self, kept: _Kept) -> None:
        write_durably(self._file, json.dumps(asdict(kept), indent=1).encode())


def _of_fold(records: Sequence[EpochRecord], fold: int) -> list[Metric]:
    return [
        Metric(name, value, _milliseconds(record.finished_at), record.epoch)
        for record in records
        if record.fold == fold
        for name in METRICS
        if (value := getattr(record, name)) is not None
    ]


def _means(records: Sequence[EpochRecord], folds: int) -> list[Metric]:
    """Return the means over the folds, of the epochs that all have finished."""
    by_epoch: dict[int, list[EpochRecord]] = {}
    for record in records:
        by_epoch.setdefault(record.epoch, []).append(record)
    return [
        Metric(name, fmean(values), max(_milliseconds(record.finished_at) for record in of_epoch), epoch)
        for epoch, of_epoch in sorted(by_epoch.items())
        for name in _MEAN_METRICS
        if len(values := [value for record in of_epoch if (value := getattr(record, name)) is not None]) == folds
    ]


def _milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)
