"""`cxrnode compare`: runs joined by image, what is not shared said, differences with intervals."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dicomnode.cli.main import app
from dicomnode.domain.errors import ConfigurationError
from modeling.evaluation.compare import MEAN, Comparison, compare
from modeling.evaluation.predictions import Predictions, read_predictions, write_predictions

IMAGES, LABELS = 240, ("Abnormal", "Mass", "Hernia")


def predictions(strength: float, *, images: slice = slice(0, IMAGES), labels: tuple[str, ...] = LABELS) -> Predictions:
    random = np.random.default_rng(0)
    truth = np.stack([random.random(IMAGES) < share for share in (0.5, 0.4, 0.02)], axis=1)
    noise = random.normal(0, 1, truth.shape)
    probability = 1 / (1 + np.exp(-(noise + strength * truth)))
    columns = [LABELS.index(label) for label in labels]
    rows = np.arange(IMAGES)[images]
    unknown = np.full(len(rows), "")
    return Predictions(
        labels=labels,
        images=np.array([f"{row}.png" for row in rows]),
        patients=(rows // 2).astype(str),
        views=unknown,
        sexes=unknown,
        ages=np.full(len(rows), -1),
        gate=unknown,
        sources=unknown,
        truth=truth[rows][:, columns],
        probability=probability[rows][:, columns],
        members=np.repeat(probability[rows][:, None, columns], 2, axis=1),
    )


def folder(path: Path, held: Predictions) -> Path:
    path.mkdir()
    write_predictions(path / "predictions.csv", held)
    return path


def compared(*folders: Path) -> Comparison:
    return compare(folders, rounds=200, seed=0, stage=lambda _: None)


def test_predictions_survive_their_file(tmp_path: Path) -> None:
    own = predictions(1.0)
    again = read_predictions(folder(tmp_path / "run", own))
    assert again.labels == own.labels
    for name in ("images", "patients", "views", "ages", "truth"):
        assert (getattr(again, name) == getattr(own, name)).all()
    assert again.probability == pytest.approx(own.probability, rel=1e-5)
    assert again.members == pytest.approx(own.members, rel=1e-5)


def test_a_better_run_is_better_by_both_tests(tmp_path: Path) -> None:
    found = compared(folder(tmp_path / "weak", predictions(0.5)), folder(tmp_path / "strong", predictions(2.0)))
    (mass,) = [one for one in found.differences if one.label == "Mass"]
    assert (mass.first, mass.second) == ("weak", "strong")
    assert mass.bootstrap.low > 0
    assert mass.delong is not None
    assert mass.delong.p_value < 1e-4
    assert mass.bootstrap.value == pytest.approx(mass.delong.difference)


def test_the_mean_leaves_out_abnormality_and_rare_labels(tmp_path: Path) -> None:
    found = compared(folder(tmp_path / "a", predictions(0.5)), folder(tmp_path / "b", predictions(2.0)))
    assert found.aucs["a"]["Hernia"] is None
    assert found.aucs["a"][MEAN] == found.aucs["a"]["Mass"]
    assert {one.label for one in found.differences} == {"Abnormal", "Mass", MEAN}


def test_a_run_does_not_differ_from_its_copy(tmp_path: Path) -> None:
    found = compared(folder(tmp_path / "a", predictions(1.0)), folder(tmp_path / "b", predictions(1.0)))
    for one in found.differences:
        assert (one.bootstrap.value, one.bootstrap.low, one.bootstrap.high) == (0, 0, 0)
        assert one.delong is None or one.delong.p_value == 1.0


def test_only_shared_images_and_labels_count_and_the_others_are_named(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", predictions(1.0, images=slice(0, 220)))
    second = folder(tmp_path / "b", predictions(2.0, images=slice(10, None), labels=("Mass", "Abnormal")))
    found = compared(first, second)
    assert (found.images, found.patients) == (210, 105)
    left = {one.run: one for one in found.not_shared}
    assert len(left["a"].images) == 10
    assert "0.png" in left["a"].images
    assert left["a"].labels == ("Hernia",)
    assert len(left["b"].images) == 20
    alone = predictions(2.0, images=slice(10, 220))
    own = compared(first, folder(tmp_path / "c", alone))
    assert found.aucs["b"]["Mass"] == own.aucs["c"]["Mass"]


def test_runs_that_share_nothing_are_refused(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", predictions(1.0, images=slice(0, 100)))
    second = folder(tmp_path / "b", predictions(1.0, images=slice(100, None)))
    with pytest.raises(ConfigurationError, match="share no image"):
        compared(first, second)


def test_runs_that_disagree_on_the_truth_are_refused(tmp_path: Path) -> None:
    other = predictions(1.0)
    other.truth[7, 1] ^= True
    first, second = folder(tmp_path / "a", predictions(1.0)), folder(tmp_path / "b", other)
    with pytest.raises(ConfigurationError, match="1 images"):
        compared(first, second)


def test_one_run_or_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", predictions(1.0))
    with pytest.raises(ConfigurationError, match="two runs"):
        compared(run)
    with pytest.raises(ConfigurationError, match="twice"):
        compared(run, tmp_path / "." / "a")


def test_a_folder_without_predictions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="an evaluation"):
        compared(tmp_path, folder(tmp_path / "a", predictions(1.0)))
    (tmp_path / "predictions.csv").write_text("image,probability\na,1\n")
    with pytest.raises(ConfigurationError, match="not a table of predictions"):
        read_predictions(tmp_path)


def test_the_command_writes_tables_plots_and_a_report_of_three_runs(tmp_path: Path) -> None:
    names = {"weak": 0.5, "middle": 1.0, "strong": 2.0}
    folders = [str(folder(tmp_path / name, predictions(strength))) for name, strength in names.items()]
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["compare", *folders, "--out", str(out), "--bootstrap", "100"])
    assert result.exit_code == 0, result.output
    assert "240 images of 120 patients" in result.output
    held = json.loads((out / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert len(held["differences"]) == 3 * 3
    assert len((out / "comparison.csv").read_text().splitlines()) == 1 + 9
    report = (out / "comparison.html").read_text()
    assert report.count("data:image/png;base64,") == 2
    assert "strong - weak: Mass" in report
