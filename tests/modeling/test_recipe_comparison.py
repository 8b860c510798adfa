import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicomnode.domain.errors import ConfigurationError
from modeling.config import Sources, TrainingConfig, read_config
from modeling.nih import LABELS, Radiographs
from modeling.recipe_comparison import HeldOut, compared, read_held_out
from modeling.run import OUT_OF_FOLD, Run, write_arrays, write_checkpoint
from modeling.tracking.history import EpochRecord

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

CONFIG = read_config(Path(__file__).parents[2] / "conf" / "train" / "smoke.toml")
COUNT = 400


def record(fold: int, epoch: int) -> EpochRecord:
    return EpochRecord(
        fold=fold, epoch=epoch, loss=0.5, held_out_loss=None, abnormality_auc=None, findings_auc=None, rate=1e-3,
        images_per_s=10.0, seconds=30.0, finished_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    random = np.random.default_rng(0)
    labels = (random.random((COUNT, len(LABELS))) < 0.4).astype(np.float32)
    radiographs = Radiographs(
        names=tuple(f"{index:08d}_000.png" for index in range(COUNT)),
        pixels=np.zeros((COUNT, 8, 8), dtype=np.uint8),
        labels=labels,
        patients=np.array([str(index // 2) for index in range(COUNT)]),
        views=np.array(["PA"] * COUNT),
        source_px=np.full(COUNT, 64),
    )
    folds = np.arange(COUNT) // 2 % 2
    return Run(config=CONFIG, radiographs=radiographs, folds=folds, sources=Sources(images=tmp_path), folder=tmp_path)


def guess(run: Run, skill: float, *, known: np.ndarray | None = None, outputs: int = len(LABELS)) -> HeldOut:
    """A run whose logits follow the labels by `skill`."""
    random = np.random.default_rng(1)
    logits = (skill * run.labels + random.normal(size=run.labels.shape)).astype(np.float32)
    if known is not None:
        logits[~known] = np.nan
    names = np.array(run.radiographs.names)
    return HeldOut(config=CONFIG, warm=False, names=names, logits=logits[:, :outputs], records=(record(0, 1),))


def test_the_better_recipe_stands_out_by_a_paired_difference(run: Run) -> None:
    found = compared(run, run.labels, [guess(run, 2.0), guess(run, 0.0)])
    assert found is not None
    good, poor = found.rows
    assert (found.images, found.patients) == (COUNT, COUNT // 2)
    assert good.abnormality is not None
    assert good.abnormality.value > 0.85
    assert good.abnormality_difference is None
    assert poor.findings_difference is not None
    assert poor.findings_difference.high < -0.2


def test_a_recipe_beside_itself_differs_by_nothing(run: Run) -> None:
    found = compared(run, run.labels, [guess(run, 1.0), guess(run, 1.0)])
    assert found is not None
    gap = found.rows[1].findings_difference
    assert gap is not None
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)


def test_only_images_that_every_run_predicted_count(run: Run) -> None:
    first, second = run.folds == 0, np.arange(COUNT) < 300
    found = compared(run, run.labels, [guess(run, 1.0, known=first), guess(run, 1.0, known=second)])
    assert found is not None
    assert found.images == int((first & second).sum())
    with pytest.raises(ConfigurationError, match="no image in common"):
        compared(run, run.labels, [guess(run, 1.0, known=first), guess(run, 1.0, known=~first)])


def test_runs_are_joined_by_the_names_of_images_not_by_their_order(run: Run) -> None:
    turned = guess(run, 2.0)
    turned = replace(turned, names=turned.names[::-1], logits=turned.logits[::-1])
    found = compared(run, run.labels, [guess(run, 2.0), turned])
    assert found is not None
    assert found.rows[0].findings == found.rows[1].findings


def test_a_run_of_the_abnormality_alone_has_no_findings_to_compare(run: Run) -> None:
    found = compared(run, run.labels, [guess(run, 2.0), guess(run, 2.0, outputs=1)])
    assert found is not None
    assert found.rows[1].findings is None
    assert found.rows[1].abnormality is not None


def test_images_whose_source_says_nothing_of_a_label_do_not_count_for_it(run: Run) -> None:
    judged = run.labels.copy()
    judged[:200, 1] = np.nan
    everything, some = (compared(run, labels, [guess(run, 1.0)]) for labels in (run.labels, judged))
    assert everything is not None
    assert some is not None
    assert everything.rows[0].findings != some.rows[0].findings
    assert everything.rows[0].abnormality == some.rows[0].abnormality


def test_a_folder_is_read_back_and_one_without_predictions_is_named(run: Run) -> None:
    run.claim_folder()
    with pytest.raises(ConfigurationError, match=OUT_OF_FOLD):
        read_held_out(run.folder)
    write_checkpoint(run.checkpoint(0), [record(0, 1), record(0, 2)], [])
    logits = guess(run, 1.0).logits
    write_arrays(run.folder / OUT_OF_FOLD, {"names": np.array(run.radiographs.names), "logits": logits})
    held = read_held_out(run.folder)
    assert np.array_equal(held.logits, logits)
    assert [entry.epoch for entry in held.records] == [1, 2]
    assert not held.warm
    assert held.config == TrainingConfig.model_validate(CONFIG.model_dump())


def test_a_run_that_began_with_trained_weights_is_told_from_one_that_did_not(run: Run) -> None:
    warm = replace(run, sources=replace(run.sources, warm_start=run.folder / "weights.npz"))
    (run.folder / "weights.npz").write_bytes(b"weights")
    warm.claim_folder()
    names, logits = np.array(run.radiographs.names), guess(run, 1.0).logits
    write_arrays(run.folder / OUT_OF_FOLD, {"names": names, "logits": logits})
    assert read_held_out(run.folder).warm


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no run"):
        read_held_out(tmp_path)
    (tmp_path / "run.json").write_text('{"identity": 1, "sources": {}, "config": {}}')
    with pytest.raises(ConfigurationError, match="this version can read"):
        read_held_out(tmp_path)


def test_a_run_that_a_former_version_began_goes_on_where_only_defaults_are_new(run: Run) -> None:
    run.claim_folder()
    path = run.folder / "run.json"
    held = json.loads(path.read_text())
    del held["config"]["train"]["mixup"]
    path.write_text(json.dumps(held))
    run.claim_folder()
    held["config"]["train"]["mixup"] = 0.2
    path.write_text(json.dumps(held))
    with pytest.raises(ConfigurationError, match="another configuration"):
        run.claim_folder()


def test_other_labels_are_another_run(run: Run) -> None:
    run.claim_folder()
    other = replace(run, radiographs=replace(run.radiographs, labels=1 - run.radiographs.labels))
    with pytest.raises(ConfigurationError, match="another configuration or data"):
        other.claim_folder()
