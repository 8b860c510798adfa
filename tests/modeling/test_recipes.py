"""Every recipe of conf/train is what its header says, and learns."""

from pathlib import Path

import keras
import numpy as np
import pytest

from benchmarks.recipes import FROM_NOTHING, OURS, comparable, warms
from dicomnode.domain.errors import ConfigurationError
from modeling.config import ApplicationModel, LiteModel, Sources, TrainingConfig, read_config
from modeling.devices import alone
from modeling.feeding import EpochBatches, Share
from modeling.losses import targets
from modeling.network import Network, build_network, epoch_rows, fold_frequency, start_fold, steps_per_epoch
from modeling.nih import Radiographs, patient_folds, read_radiographs
from modeling.run import Run
from modeling.train import _augmented

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

RECIPES = sorted((Path(__file__).parents[2] / "conf" / "train").glob("*.toml"))
SYSTEMS = {
    "nih-b2-256", "tang-binary", "baseline-cnn", "mobilenet-128", "densenet121-weighted-320", "densenet121-focal",
    "resnet50v2-focal", "resnet56v2-undersampled", "lite0-reference", "lite2-reference", "smoke",
}  # fmt: skip
SIDE = 64


def changed(config: TrainingConfig, **sections: dict[str, object]) -> TrainingConfig:
    held = config.model_dump()
    return TrainingConfig.model_validate(held | {name: held[name] | keys for name, keys in sections.items()})


def at_hand(config: TrainingConfig) -> TrainingConfig:
    """The recipe on a small input, without weights that would have to be fetched, for two folds."""
    model: dict[str, object] = {}
    if isinstance(config.model, ApplicationModel):
        model = {"weights": "random", "trainable_fraction": 1.0}
    if isinstance(config.model, LiteModel):
        model = {"frozen_blocks": 0}
    small = {"side": SIDE, "source_side": SIDE}
    return changed(config, input=small, model=model, train={"folds": 2, "batch_size": 4, "towards_start": 0})


@pytest.fixture(scope="module")
def radiographs(drawn_archive: Path) -> Radiographs:
    return read_radiographs(drawn_archive, None, at_hand(read_config(RECIPES[0])).input)


def test_all_systems_have_a_recipe() -> None:
    assert {path.stem for path in RECIPES} == SYSTEMS


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_states_its_command_hardware_duration_and_score(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for word in ("Command:", "Hardware:", "Duration", "Score:", f"conf/train/{path.name}"):
        assert word in text, word
    assert max(len(line) for line in path.read_text().splitlines() if not line.startswith("note")) <= 120


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_its_model_and_takes_one_step(path: Path, radiographs: Radiographs, tmp_path: Path) -> None:
    written = read_config(path)
    config = at_hand(written)
    folds = patient_folds(radiographs, folds=2, seed=1)
    run = Run(config=config, radiographs=radiographs, folds=folds, sources=Sources(images=tmp_path), folder=tmp_path)
    network = build_network(run, alone())
    try:
        before = one_step(run, network)
    finally:
        keras.config.set_dtype_policy("float32")
    after = network.head.get_layer("logits").get_weights()
    assert after[0].shape[-1] == len(run.outputs)
    assert any(not np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    assert written.bundle.name in {path.stem, "cxrnode-reference"}


def one_step(run: Run, network: Network) -> list[np.ndarray]:
    """Take a step of fold 0 as the run would, and return the last layer's weights before it."""
    train = run.config.train
    rows = epoch_rows(run, 0, 0)
    assert steps_per_epoch(run) >= 1
    start_fold(run, network, 0)
    before = [value.copy() for value in network.head.get_layer("logits").get_weights()]
    batches = EpochBatches(
        rows,
        steps=1,
        batch_size=train.batch_size,
        read_inputs=lambda wanted: _augmented(run, wanted, 0),
        labels=run.labels,
        make_targets=lambda labels: targets(labels, fold_frequency(run, 0), run.config.loss),
        mixup=train.mixup,
        seed=(0, 0, 0),
        share=Share(index=0, count=1),
    )
    fitted = network.head.fit(batches, shuffle=False, verbose=0)
    assert np.isfinite(fitted.history["loss"][0])
    return before


def test_a_recipe_with_an_unknown_key_or_one_of_another_kind_is_refused(tmp_path: Path) -> None:
    text = (RECIPES[0].parent / "smoke.toml").read_text()
    for wrong in (text.replace("dropout", "drop_out"), text.replace('kind = "bce"', 'kind = "bce"\ngamma = 2.0')):
        assert wrong != text
        path = tmp_path / "wrong.toml"
        path.write_text(wrong)
        with pytest.raises(ConfigurationError, match=r"wrong\.toml: .*(drop_out|gamma)"):
            read_config(path)


def test_what_is_measured_without_a_warm_start_begins_with_none() -> None:
    config = comparable(OURS)
    assert warms(OURS, config)
    assert not warms(OURS + FROM_NOTHING, comparable(OURS + FROM_NOTHING))
