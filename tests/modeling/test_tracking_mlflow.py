"""MLflow against a real store in a folder, and a server that refuses connections."""

import http.server
import importlib.util
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dicomnode.domain.errors import ConfigurationError
from modeling.config import TrackingSection
from modeling.run_reporting import open_tracker
from modeling.tracking.mlflow import MlflowTracker, without_credentials
from modeling.tracking.mlflow_runs import MlflowRuns
from modeling.tracking.tracker import NoTracker, Tracker
from tests.modeling.tracked import configuration, records

pytest.importorskip("mlflow", reason="MLflow is not installed")

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

FACTS = {"images": "100", "devices": "2 x cpu"}
ON = TrackingSection(mlflow=True)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)
    # What is set here is restored after the test, and with it what the tracker sets.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    return run


def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=(folder.parent / "mlruns").as_uri())


def runs(folder: Path) -> dict[str, Run]:
    """Return every run of the store by its name; no name may come twice."""
    mlflow = client(folder)
    [experiment] = [one for one in mlflow.search_experiments() if one.name == "cxrnode"]
    found = mlflow.search_runs([experiment.experiment_id])
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found)
    return named


def history(folder: Path, run: str, name: str) -> list[tuple[int, float]]:
    measured = client(folder).get_metric_history(runs(folder)[run].info.run_id, name)
    return [(metric.step, metric.value) for metric in measured]


def report_run(folder: Path, *, epochs: int, finish: bool = True, facts: dict[str, str] = FACTS) -> None:
    tracker = open_tracker(ON, folder)
    tracker.begin(configuration(), facts)
    for done in range(1, 2 * epochs + 1):
        tracker.epochs(records(folds=2, epochs=epochs)[:done])
    if finish:
        (folder / "history.csv").write_text("epoch\n", encoding="utf-8")
        tracker.finish({"out_of_fold_auc": 0.74}, [folder / "history.csv"])
    else:
        tracker.stop()


def test_a_training_is_a_run_with_its_folds_nested_in_it(folder: Path) -> None:
    report_run(folder, epochs=3)
    found = runs(folder)
    assert set(found) == {"tracked 1", "fold 0", "fold 1"}
    parent = found["tracked 1"]
    assert found["fold 1"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert history(folder, "fold 1", "loss") == [(1, 2.0), (2, 1.5), (3, 1 + 1 / 3)]
    assert history(folder, "tracked 1", "loss") == [(1, 1.5), (2, 1.0), (3, (1 / 3 + 1 + 1 / 3) / 2)]
    assert parent.data.metrics["out_of_fold_auc"] == 0.74
    assert [file.path for file in client(folder).list_artifacts(parent.info.run_id)] == ["history.csv"]


def test_a_folder_such_as_the_bundle_is_logged_with_its_files(folder: Path) -> None:
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "model.onnx").write_bytes(b"graph")
    (folder / "predictions.csv").write_text("image\n", encoding="utf-8")
    tracker = open_tracker(ON, folder)
    tracker.begin(configuration(), FACTS)
    tracker.finish({}, [folder / "predictions.csv", bundle])
    parent = runs(folder)["tracked 1"].info.run_id
    assert [file.path for file in client(folder).list_artifacts(parent)] == ["bundle", "predictions.csv"]
    assert [file.path for file in client(folder).list_artifacts(parent, "bundle")] == ["bundle/model.onnx"]


def test_parameters_are_the_flattened_configuration_and_the_facts(folder: Path) -> None:
    report_run(folder, epochs=1)
    parent = runs(folder)["tracked 1"]
    known = parent.data.params
    assert known["loss.kind"] == "focal"
    assert known["train.folds"] == "2"
    assert known["optimiser.clip_norm"] == "null"
    assert known["images"] == "100"
    assert len(known["config_sha256"]) == 64
    assert not [name for name in known if name.startswith("tracking")]
    assert parent.data.tags["mlflow.note.content"] == "Of two folds."


def test_a_resumed_run_goes_on_in_the_same_run_and_logs_no_epoch_twice(folder: Path) -> None:
    report_run(folder, epochs=2, finish=False)
    before = {name: run.info.run_id for name, run in runs(folder).items()}
    assert {run.info.status for run in runs(folder).values()} == {"KILLED"}
    report_run(folder, epochs=3, facts=FACTS | {"devices": "8 x tpu"})
    assert {name: run.info.run_id for name, run in runs(folder).items()} == before
    for run in ("fold 0", "fold 1", "tracked 1"):
        for name in ("loss", "held_out_loss", "abnormality_auc"):
            assert [step for step, _ in history(folder, run, name)] == [1, 2, 3]
    parent = runs(folder)["tracked 1"]
    assert (parent.data.params["devices"], parent.data.tags["devices"]) == ("2 x cpu", "8 x tpu")
    assert parent.info.status == "FINISHED"


def test_an_epoch_that_arrived_in_part_is_completed_and_not_repeated(folder: Path) -> None:
    report_run(folder, epochs=1, finish=False)
    run = runs(folder)["fold 0"].info.run_id
    client(folder).log_metric(run, "loss", 0.5, step=2)
    report_run(folder, epochs=2)
    assert history(folder, "fold 0", "loss") == [(1, 1.0), (2, 0.5)]
    assert [step for step, _ in history(folder, "fold 0", "seconds")] == [1, 2]


def test_a_run_that_was_deleted_in_mlflow_is_begun_anew(folder: Path) -> None:
    report_run(folder, epochs=1, finish=False)
    former = runs(folder)
    for run in former.values():
        client(folder).delete_run(run.info.run_id)
    report_run(folder, epochs=2)
    assert runs(folder)["tracked 1"].info.run_id != former["tracked 1"].info.run_id
    assert [step for step, _ in history(folder, "fold 0", "loss")] == [1, 2]


def test_the_folders_runs_are_not_looked_for_in_another_store(folder: Path) -> None:
    report_run(folder, epochs=1)
    kept = folder / "mlflow.json"
    held = json.loads(kept.read_text(encoding="utf-8"))
    kept.write_text(json.dumps(held | {"address": "https://elsewhere"}), encoding="utf-8")
    tracker = open_tracker(ON, folder)
    tracker.begin(configuration(), FACTS)
    tracker.stop()
    assert json.loads(kept.read_text(encoding="utf-8"))["parent"] != held["parent"]


def test_what_an_epoch_did_not_measure_is_absent(folder: Path) -> None:
    tracker = open_tracker(ON, folder)
    tracker.begin(configuration(), FACTS)
    tracker.epochs([replace(record, findings_auc=None) for record in records(folds=2, epochs=1)])
    tracker.finish({}, [])
    assert "findings_auc" not in runs(folder)["fold 0"].data.metrics
    assert "findings_auc" not in runs(folder)["tracked 1"].data.metrics


class Broken(MlflowRuns):
    """A store that fails while `down`, after it has logged the first fold."""

    down = True

    def _fold(self, kept: object, fold: int) -> str:
        if self.down and fold == 1:
            raise ConnectionError("https://name:secret@server")
        return super()._fold(kept, fold)


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_a_server_missed_while_it_was_down_is_logged_when_it_is_back(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="modeling.tracking.mlflow")
    broken = Broken(client(folder), "cxrnode", folder, address="here", files=None)
    tracker = MlflowTracker(broken, "here")
    tracker.begin(configuration(), FACTS)
    done = records(folds=2, epochs=3)
    for count in (2, 4):
        until(tracker._at_work.done)
        tracker.epochs(done[:count])
    until(tracker._at_work.done)
    broken.down = False
    tracker.epochs(done)
    until(tracker._at_work.done)
    tracker.epochs(done)
    tracker.finish({}, [])
    assert [(record.levelname, record.message.split("(")[-1]) for record in caplog.records] == [
        ("WARNING", "ConnectionError); training continues and reports again after each epoch"),
        ("INFO", "MLflow at here answers again; everything missed is reported"),
    ]
    for run in ("fold 0", "fold 1"):
        assert [step for step, _ in history(folder, run, "loss")] == [1, 2, 3]


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def refused(folder: Path) -> Tracker:
    return open_tracker(TrackingSection(mlflow=True, uri=f"http://name:secret@127.0.0.1:{free_port()}"), folder)


def test_a_server_that_refuses_connections_stops_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tracker = refused(folder)
    began = time.monotonic()
    tracker.begin(configuration(), FACTS)
    for done in range(1, 7):
        tracker.epochs(records(folds=2, epochs=3)[:done])
    tracker.finish({"auc": 0.5}, [])
    assert time.monotonic() - began < 20
    assert "lacks the end of this run" in caplog.records[-1].message
    assert not [record for record in caplog.records if record.name.startswith("urllib3")]
    assert "secret" not in caplog.text
    assert not (folder / "mlflow.json").exists()


def test_a_server_that_never_answers_keeps_no_epoch_waiting(folder: Path) -> None:
    released = threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            released.wait(20)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tracker = open_tracker(TrackingSection(mlflow=True, uri=f"http://127.0.0.1:{server.server_port}"), folder)
    began = time.monotonic()
    tracker.begin(configuration(), FACTS)
    for done in range(1, 7):
        tracker.epochs(records(folds=2, epochs=3)[:done])
    told = time.monotonic() - began
    tracker.stop()
    released.set()
    server.shutdown()
    server.server_close()
    assert told < 1


def test_tracking_that_is_off_touches_nothing(folder: Path) -> None:
    assert isinstance(open_tracker(TrackingSection(), folder), NoTracker)
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_without_mlflow_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'cxrnode\[mlflow\]'"):
        open_tracker(ON, folder)


def test_an_address_that_is_none_of_mlflows_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="gopher://server"):
        open_tracker(TrackingSection(mlflow=True, uri="gopher://name:secret@server"), folder)


def test_mlflow_reports_to_nobody_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    open_tracker(ON, folder).stop()
    from mlflow.telemetry.utils import is_telemetry_disabled

    # Pytest and CI alone would disable it too.
    for name in [name for name in os.environ if name in {"CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST"}]:
        monkeypatch.delenv(name)
    assert is_telemetry_disabled()


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("https://name:secret@server:5000/x", "https://server:5000/x"),
        ("sqlite:////folder/mlflow.db", "sqlite:////folder/mlflow.db"),
        ("https://server/a@b", "https://server/a@b"),
    ],
)
def test_an_address_is_named_without_its_password(uri: str, named: str) -> None:
    assert without_credentials(uri) == named
