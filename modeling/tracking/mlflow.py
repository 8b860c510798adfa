"""A run in MLflow: one run for the training, one nested in it for each fold.

Training never waits for MLflow: a thread logs what MLflow lacks. After a failure the next report catches up, because
every report contains all records, and epochs that MLflow has are not logged again.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from dicomnode.domain.errors import ConfigurationError
from modeling.config import TrackingSection, TrainingConfig
from modeling.tracking.history import EpochRecord
from modeling.tracking.tracker import RunEnd, RunStart, RunState

if TYPE_CHECKING:
    from modeling.tracking.mlflow_runs import MlflowRuns

log = logging.getLogger(__name__)

STORE = "mlruns"
_DATABASES = frozenset({"sqlite", "postgresql", "mysql", "mssql"})
_LAST_WAIT_S = 120.0
_ENVIRONMENT = {
    # Nothing is sent to anyone but the configured server.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow 3 prefers a database and opens a folder only when told so.
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
_PATIENCE = {
    # MLflow's own defaults wait for minutes, and urllib3 warns of each retry; here the next epoch tries again.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def open_mlflow(settings: TrackingSection, folder: Path) -> "MlflowTracker":
    """Return the tracker of the run in `folder`, which keeps the names of its MLflow runs.

    Raises: ConfigurationError when the address is not one of MLflow's, or its store cannot be opened.
    """
    # MLflow reads these when it is first imported.
    os.environ.update(_ENVIRONMENT)
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from modeling.tracking.mlflow_runs import MlflowRuns

    store = (folder.resolve().parent / STORE).as_uri()
    uri = settings.uri or store
    named = without_credentials(uri)
    try:
        client = MlflowClient(tracking_uri=uri)
    except (MlflowException, OSError, ValueError) as error:
        raise ConfigurationError(f"tracking.uri: MLflow cannot open {named} ({type(error).__name__})") from error
    except ImportError as error:
        raise ConfigurationError(
            f"tracking.uri: {named} needs a package that is not installed: {error.name}"
        ) from error
    if not settings.uri:
        log.info(
            "to see the run, with the package mlflow: MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri %s",
            store,
        )
    # A database says nothing of where files go, and MLflow would choose the working directory.
    files = f"{store}/{settings.experiment}" if uri.partition(":")[0].partition("+")[0] in _DATABASES else None
    return MlflowTracker(MlflowRuns(client, settings.experiment, folder, address=named, files=files), named)


def without_credentials(uri: str) -> str:
    """Return the address without the user and password that it may carry."""
    return re.sub(r"(?<=://)[^/]*@", "", uri)


class MlflowTracker:
    """Reports to MLflow from a thread of its own; see `Tracker`."""

    def __init__(self, runs: "MlflowRuns", address: str, *, last_wait_s: float = _LAST_WAIT_S) -> None:
        self._runs, self._address, self._last_wait_s = runs, address, last_wait_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._at_work: Future[None] | None = None
        self._failing = False
        self._start: RunStart | None = None
        self._records: tuple[EpochRecord, ...] = ()
        self._ended = False

    def begin(self, config: TrainingConfig, facts: Mapping[str, str]) -> None:
        """Open an MLflow run, or continue the one that the run's folder names."""
        self._start = RunStart(config=config, facts=dict(facts))
        self._tell()

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Report all finished epochs."""
        self._records = tuple(records)
        self._tell()

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Log what is missing, the result and its files, and close the MLflow runs."""
        self._end(RunEnd(status="FINISHED", metrics=dict(metrics), files=tuple(files)))

    def stop(self) -> None:
        """Log what is missing and mark the MLflow runs as killed."""
        if not self._ended:
            self._end(RunEnd(status="KILLED", metrics={}, files=()))

    def _tell(self) -> None:
        if self._start is None or self._ended:
            return
        if self._at_work is not None:
            if not self._at_work.done():
                # The thread is still busy; the next report contains everything.
                return
            self._judge(self._at_work)
        self._at_work = self._pool.submit(self._runs.bring_to, RunState(start=self._start, records=self._records))

    def _end(self, end: RunEnd) -> None:
        self._ended = True
        if self._start is None:
            self._pool.shutdown(wait=False)
            return
        last = self._pool.submit(self._runs.bring_to, RunState(start=self._start, records=self._records, end=end))
        wait([last], timeout=self._last_wait_s)
        self._pool.shutdown(wait=False, cancel_futures=True)
        lacking = not last.done() or last.cancelled() or last.exception() is not None
        if lacking:
            why = last.exception() if last.done() and not last.cancelled() else None
            log.warning("MLflow at %s lacks the end of this run%s", self._address, _because(why))

    def _judge(self, told: Future[None]) -> None:
        error = told.exception()
        if error is not None and not self._failing:
            log.warning(
                "MLflow at %s cannot be reached%s; training continues and reports again after each epoch",
                self._address,
                _because(error),
            )
        if error is None and self._failing:
            log.info("MLflow at %s answers again; everything missed is reported", self._address)
        self._failing = error is not None


def _because(error: BaseException | None) -> str:
    """Return an error's kind: its message may carry the credentials of the address."""
    if error is None:
        return ""
    return f" ({getattr(error, 'error_code', None) or type(error).__name__})"
