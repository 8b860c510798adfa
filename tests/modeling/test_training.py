"""One smoke run, killed and resumed, serves every test here: most of its time is compiling the network."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from dicomnode.bundle.manifest import Manifest, read_manifest
from dicomnode.bundle.reader import open_bundle
from dicomnode.bundle.scores import SCORE_BOUNDS, score_counts
from dicomnode.domain.errors import ConfigurationError
from modeling import train as training
from modeling.calibration import operating_points, probabilities
from modeling.config import Sources, read_config
from modeling.devices import alone
from modeling.export import export_bundle
from modeling.network import Network, build_network, load_fold, out_of_fold, start_fold, write_final
from modeling.nih import patient_folds, read_radiographs
from modeling.run import Run
from modeling.tracking.history import EpochRecord
from modeling.train import train_folds

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

TRAIN_EPOCH = training._train_epoch
SMOKE = Path(__file__).parents[2] / "conf" / "train" / "smoke.toml"


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code under test may catch it."""


class Quiet:
    """Follows a run and keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[EpochRecord] = []

    def callback(self, *, fold: int, epoch: int) -> keras.callbacks.Callback:
        return keras.callbacks.Callback()

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        self.told = list(records)

    def stopped(self, fold: int) -> None:
        pass


@dataclass(frozen=True)
class Finished:
    run: Run
    network: Network
    manifest: Manifest
    bundle: Path
    epochs_before_kill: int
    epochs_after_resume: int


@pytest.fixture(scope="module")
def finished(drawn_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    config = read_config(SMOKE)
    radiographs = read_radiographs(drawn_archive, None, config.input)
    folds = patient_folds(radiographs, folds=2, seed=1)
    folder, sources = tmp_path_factory.mktemp("run"), Sources(images=drawn_archive)
    run = Run(config=config, radiographs=radiographs, folds=folds, sources=sources, folder=folder)
    run.claim_folder()
    network = build_network(run, alone())
    with pytest.MonkeyPatch.context() as patch:
        before = count_epochs(patch, die_in=3)
        with pytest.raises(Killed):
            train_folds(run, network, Quiet())
        after = count_epochs(patch, die_in=None)
        train_folds(run, network, Quiet())
    bundle = folder / "bundle"
    manifest = export_bundle(run, bundle, created=datetime(2026, 1, 2, tzinfo=UTC))
    return Finished(run, network, manifest, bundle, len(before), len(after))


def count_epochs(patch: pytest.MonkeyPatch, *, die_in: int | None) -> list[tuple[int, int]]:
    """Record every epoch begun as (fold, epoch), and die before the given one is stored."""
    begun: list[tuple[int, int]] = []
    real = TRAIN_EPOCH

    def counted(run: Run, network: Network, epoch: training._Epoch, watch: Quiet) -> None:
        if len(begun) + 1 == die_in:
            raise Killed
        real(run, network, epoch, watch)
        begun.append((epoch.fold, epoch.number))

    patch.setattr(training, "_train_epoch", counted)
    return begun


def test_a_resumed_run_repeats_no_finished_epoch(finished: Finished) -> None:
    assert finished.epochs_before_kill == 2
    assert finished.epochs_after_resume == 2
    assert [len(finished.run.records(fold)) for fold in range(2)] == [2, 2]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(finished: Finished, tmp_path: Path) -> None:
    resumed = out_of_fold(finished.run, finished.network)
    straight, watch = dataclasses.replace(finished.run, folder=tmp_path), Quiet()
    train_folds(straight, finished.network, watch)
    assert np.allclose(out_of_fold(straight, finished.network), resumed, atol=1e-3)
    assert [(record.epoch, record.fold) for record in watch.told] == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_damaged_checkpoint_is_named(finished: Finished, tmp_path: Path) -> None:
    run = dataclasses.replace(finished.run, folder=tmp_path)
    run.checkpoint(0).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ConfigurationError, match=r"fold-0\.npz is damaged"):
        load_fold(run, finished.network, 0)


def test_a_folder_of_another_configuration_is_refused(finished: Finished) -> None:
    settings = finished.run.config.train.model_copy(update={"mixup": 0.5})
    other = dataclasses.replace(finished.run, config=finished.run.config.model_copy(update={"train": settings}))
    with pytest.raises(ConfigurationError, match="another configuration"):
        other.claim_folder()


def test_frozen_random_blocks_are_refused(finished: Finished, tmp_path: Path) -> None:
    model = finished.run.config.model.model_copy(update={"frozen_blocks": 3})
    config = finished.run.config.model_copy(update={"model": model})
    with pytest.raises(ConfigurationError, match="needs a warm start"):
        dataclasses.replace(finished.run, config=config, folder=tmp_path).claim_folder()


def test_the_bundle_opens_and_replays_its_golden_vectors(finished: Finished) -> None:
    bundle = open_bundle(finished.bundle)
    golden = bundle.golden()
    session = onnxruntime.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    for name, value in zip(golden.outputs, session.run(list(golden.outputs), {"image": golden.image}), strict=True):
        assert np.allclose(value, golden.outputs[name], atol=1e-5)
    assert bundle.manifest.members == 2
    assert [label.name for label in bundle.manifest.labels][:2] == ["Abnormal", "Atelectasis"]


def test_maps_sum_to_the_mean_logit_less_its_bias(finished: Finished) -> None:
    golden = open_bundle(finished.bundle).golden()
    biases = []
    for fold in range(2):
        load_fold(finished.run, finished.network, fold)
        biases.append(finished.network.head.get_layer("logits").get_weights()[1])
    expected = golden.outputs["logits"].mean(axis=1) - np.mean(biases, axis=0)
    # The bias is stored as float16, whose spacing near 3 is 2e-3.
    assert np.allclose(golden.outputs["maps"].sum(axis=(1, 2)), expected, atol=2e-3)


def test_maps_are_the_gradient_weighted_activations(finished: Finished) -> None:
    head = finished.network.head
    inner = keras.Model(head.input, [head.get_layer("last_map").output, head.output])
    with tf.GradientTape() as tape:
        images = tf.constant(finished.run.radiographs.pixels[:2, ..., None] / np.float32(255))
        activations, logits = inner(images)
        tape.watch(activations)
        pooled = tf.reduce_mean(activations, axis=(1, 2))
        again = tf.matmul(pooled, head.get_layer("logits").kernel) + head.get_layer("logits").bias
    assert np.allclose(again, logits, atol=1e-4)
    weights = tape.jacobian(again, activations)
    kernel, cells = head.get_layer("logits").get_weights()[0], activations.shape[1] * activations.shape[2]
    assert np.allclose(weights[0, :, 0, 0, 0], kernel.T / cells, atol=1e-7)


def test_large_weights_are_stored_in_half_precision(finished: Finished) -> None:
    parameters = 2 * finished.network.head.count_params()
    assert finished.bundle.joinpath("model.onnx").stat().st_size < 2.3 * parameters


def test_operating_points_come_from_out_of_fold_predictions(finished: Finished) -> None:
    logits = out_of_fold(finished.run, finished.network)
    label = finished.manifest.labels[0]
    truth = finished.run.radiographs.labels[:, 0] > 0.5
    expected = operating_points(
        truth, probabilities(label.calibration, logits[:, 0]), frequency=float(truth.mean()), never_ill=~truth
    )
    assert label.operating_points["youden"].threshold == pytest.approx(expected["youden"].threshold, abs=1e-4)


def test_abnormality_is_read_where_nine_in_ten_never_ill_are_spared(finished: Finished) -> None:
    points = finished.manifest.labels[0].operating_points
    assert points[finished.manifest.default_operating_point] == points["never_ill_90"]


def test_labels_state_how_frequent_they_are_in_the_training_images(finished: Finished) -> None:
    frequencies = finished.run.labels.mean(axis=0)
    assert [label.prevalence for label in finished.manifest.labels] == pytest.approx(frequencies.tolist())


def test_final_weights_alone_are_enough_to_judge_a_fold_but_not_to_go_on(finished: Finished, tmp_path: Path) -> None:
    run = dataclasses.replace(finished.run, folder=tmp_path)
    run.claim_folder()
    for fold in range(2):
        write_final(finished.run, finished.network, fold, run.checkpoint(fold))
    assert run.checkpoint(0).stat().st_size < 0.3 * finished.run.checkpoint(0).stat().st_size
    assert run.records(0) == finished.run.records(0)
    expected, logits = out_of_fold(finished.run, finished.network), out_of_fold(run, finished.network)
    assert np.abs(logits - expected).max() < 0.01 * np.abs(expected).max()
    train = run.config.train.model_copy(update={"epochs": 3})
    longer = dataclasses.replace(run, config=run.config.model_copy(update={"train": train}))
    with pytest.raises(ConfigurationError, match="final weights"):
        train_folds(longer, finished.network, Quiet())


def test_judged_weights_lie_between_the_start_and_the_end(finished: Finished) -> None:
    train = finished.run.config.train.model_copy(update={"towards_start": 0.25})
    run = dataclasses.replace(finished.run, config=finished.run.config.model_copy(update={"train": train}))
    network, name = finished.network, "conv48"
    load_fold(finished.run, network, 0)
    trained, read_out = (network.head.get_layer(layer).get_weights()[0] for layer in (name, "logits"))
    start_fold(run, network, 0)
    start = network.head.get_layer(name).get_weights()[0]
    load_fold(run, network, 0)
    assert np.allclose(network.head.get_layer(name).get_weights()[0], 0.75 * trained + 0.25 * start, atol=1e-6)
    assert np.allclose(network.head.get_layer("logits").get_weights()[0], read_out)


def test_there_is_no_way_back_to_random_weights(finished: Finished) -> None:
    train = finished.run.config.train.model_copy(update={"towards_start": 0.25})
    run = dataclasses.replace(finished.run, config=finished.run.config.model_copy(update={"train": train}))
    with pytest.raises(ConfigurationError, match="no way back"):
        build_network(run, alone())


def test_the_bundle_holds_how_its_out_of_fold_scores_were_distributed(finished: Finished) -> None:
    logits = out_of_fold(finished.run, finished.network)
    for index, label in enumerate(finished.manifest.labels[:2]):
        assert label.scores is not None
        assert label.scores.bounds == SCORE_BOUNDS
        assert label.scores.counts == score_counts(probabilities(label.calibration, logits[:, index]).tolist())
        assert sum(label.scores.counts) == len(finished.run.radiographs.labels)


def test_the_bundle_holds_curves_where_there_are_images_enough_for_them(finished: Finished) -> None:
    abnormal, *findings = finished.manifest.labels
    assert (abnormal.positives, [one.positives for one in findings if one.positives >= 30]) == (30, [])
    assert abnormal.curves is not None
    assert abnormal.auc is not None
    assert (abnormal.curves.images, abnormal.curves.patients) == (60, 30)
    assert abnormal.curves.roc.area == pytest.approx(abnormal.auc, abs=0.001)
    assert [one.images for one in abnormal.curves.reliability] == [6] * 10
    assert all(point.sensitivity_interval is not None for point in abnormal.operating_points.values())
    assert [one.curves for one in findings] == [None] * 14


def test_a_column_of_the_manifest_is_a_line(finished: Finished) -> None:
    text = (finished.bundle / "manifest.json").read_text(encoding="utf-8")
    assert read_manifest(finished.bundle / "manifest.json") == finished.manifest
    (curve,) = [line for line in text.splitlines() if '"sensitivity": [' in line]
    assert curve.rstrip().endswith("1.0 ],")


def test_the_card_says_what_is_not_measured_and_cites_the_data(finished: Finished) -> None:
    card = (finished.bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| Hernia | " in card
    assert "| **mean of the 14 findings** | | **-** |" in card
    assert "CVPR 2017" in card
    assert card.count("Research use only") == 1
