"""The devices and hosts of a run change nothing that it learns.

Training here runs in processes of its own, since a process has one backend and one number of devices for life.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling.devices import HOSTS
from tests.support.processes import free_port

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]
SMOKE = Path(__file__).parents[2] / "conf" / "train" / "smoke.toml"
RUN_S = 600
CXRNODE = ("-m", "dicomnode")
IMPATIENT = "from modeling import devices; devices.LOOKS = 2; from dicomnode.cli import main; main()"
RECIPE = """
[bundle]
name = "small"
version = "0"
undetermined_spread = 0.15
[input]
side = 32
source_side = 32
[model]
backbone = "baseline-cnn"
dropout = {dropout}
[loss]
kind = "bce"
[optimiser]
kind = "adamw"
weight_decay = 0.05
clip_norm = 1.0
average_steps = 4
[schedule]
kind = "cosine"
rate = 1e-3
[train]
folds = 2
epochs = 2
batch_size = {batch_size}
precision = "{precision}"
seed = 2
[augment]
rotation_degrees = 10
blur = 0.3
"""


def environment(*, emulated: int = 1, backend: str = "jax", **more: str) -> dict[str, str]:
    """Return this process's environment with the backend and so many emulated devices."""
    fixed = {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "200"}
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={emulated}"}
    around = {name: value for name, value in os.environ.items() if name not in HOSTS}
    return around | fixed | flags | more


def started(*words: object, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, words)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen[str], status: int = 0) -> str:
    """Return what the process printed once it has ended with the status."""
    try:
        printed, _ = process.communicate(timeout=RUN_S)
    finally:
        process.kill()
    assert process.returncode == status, printed
    return printed


class Small:
    """Runs of one small recipe, each by `cxrnode train` on devices of its own."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder = archive, folder

    def recipe(self, *, dropout: float = 0.2, precision: str = "float32", batch_size: int = 8) -> Path:
        path = self.folder / f"{dropout}-{precision}-{batch_size}.toml"
        path.write_text(RECIPE.format(dropout=dropout, precision=precision, batch_size=batch_size))
        return path

    def start(
        self, out: Path, *, env: dict[str, str], recipe: Path | None = None, command: Sequence[str] = CXRNODE
    ) -> subprocess.Popen[str]:
        words = ("--config", recipe or self.recipe(), "--images", self.archive, "--out", out, "--fold", 0)
        return started(*command, "train", *words, env=env)

    def hosts(self, outs: Sequence[Path], *, command: Sequence[str] = CXRNODE) -> list[subprocess.Popen[str]]:
        """Start a process of two devices for each folder, as one run."""
        address = f"127.0.0.1:{free_port()}"
        places = [(address, str(len(outs)), str(place)) for place in range(len(outs))]
        named = [dict(zip(HOSTS, values, strict=True)) for values in places]
        return [
            self.start(out, env=environment(emulated=2, **values), command=command)
            for out, values in zip(outs, named, strict=True)
        ]


@pytest.fixture(scope="module")
def small(drawn_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(drawn_archive, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def on_one_device(small: Small) -> Path:
    out = small.folder / "one"
    ended(small.start(out, env=environment()))
    return out


def losses(out: Path) -> list[float]:
    """Return every epoch's loss in training, then every epoch's held-out loss."""
    records = json.loads((out / "history.json").read_text())
    return [record[name] for name in ("loss", "held_out_loss") for record in records]


def held_out(out: Path) -> Any:
    with np.load(out / "out-of-fold.npz") as held:
        return held["logits"][held["folds"] == 0]


def assert_learnt_the_same(out: Path, other: Path) -> None:
    assert len(losses(out)) == 4
    assert losses(out) == pytest.approx(losses(other), abs=1e-5)
    assert np.all(np.isfinite(held_out(out)))
    assert np.allclose(held_out(out), held_out(other), atol=1e-4)


def test_one_and_eight_devices_learn_the_same(small: Small, on_one_device: Path) -> None:
    out = small.folder / "eight"
    ended(small.start(out, env=environment(emulated=8)))
    assert "8 CPU devices" in (out / "model.txt").read_text()
    assert_learnt_the_same(out, on_one_device)


def test_two_hosts_learn_what_one_does(small: Small, on_one_device: Path) -> None:
    out = small.folder / "two"
    for process in small.hosts([out, out]):
        ended(process)
    assert "4 CPU devices of 2 hosts" in (out / "model.txt").read_text()
    assert_learnt_the_same(out, on_one_device)


def test_hosts_without_a_common_folder_are_refused(small: Small, tmp_path: Path) -> None:
    for process in small.hosts([tmp_path / "a", tmp_path / "b"], command=("-c", IMPATIENT)):
        assert "a run needs a folder that all of them share" in ended(process, status=2)
    assert not (tmp_path / "b").exists()


def test_both_backends_reach_the_same_loss(small: Small, tmp_path: Path) -> None:
    """One epoch on TensorFlow gives both the same weights; random weights and dropout are each backend's own."""
    script, recipe = Path(__file__).with_name("until_epoch.py"), small.recipe(dropout=0.0)
    begun = tmp_path / "tensorflow"
    ended(started(script, recipe, small.archive, begun, 1, env=environment(backend="tensorflow")))
    shutil.copytree(begun, tmp_path / "jax")
    for backend in ("tensorflow", "jax"):
        ended(started(script, recipe, small.archive, tmp_path / backend, 2, env=environment(backend=backend)))
    assert len(losses(begun)) == 4
    assert losses(tmp_path / "jax") == pytest.approx(losses(begun), abs=1e-5)


def test_bfloat16_learns_nearly_the_same_and_keeps_its_weights_whole(small: Small, on_one_device: Path) -> None:
    out = small.folder / "bfloat16"
    ended(small.start(out, env=environment(emulated=8), recipe=small.recipe(precision="bfloat16")))
    assert losses(out) == pytest.approx(losses(on_one_device), rel=0.02)
    assert losses(out) != losses(on_one_device)
    with np.load(out / "fold-0.npz") as held, np.load(on_one_device / "fold-0.npz") as whole:
        assert {name: held[name].dtype for name in held} == {name: whole[name].dtype for name in whole} | {
            "history": held["history"].dtype
        }


PREDICTING = """
from modeling.devices import choose_backend, spread_over_devices
choose_backend(tpu=False)
spread = spread_over_devices()
import keras, numpy as np
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
model.compile(optimizer="sgd", loss="mse")
for count in (1, 7, 64, 65):
    rows = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    kernel, bias = model.layers[0].get_weights()
    gamma, beta, mean, variance = model.layers[1].get_weights()
    expected = (rows @ kernel + bias - mean) / np.sqrt(variance + model.layers[1].epsilon) * gamma + beta
    assert np.allclose(spread.predict(model, rows), expected, atol=1e-5), count
    model.fit(np.ones((8, 3)), np.ones((8, 2)), batch_size=8, verbose=0)
print(spread.describe())
"""


def test_eight_devices_predict_every_row_and_the_model_stays_usable() -> None:
    assert ended(started("-c", PREDICTING, env=environment(emulated=8))).endswith("8 CPU devices\n")


def test_a_batch_that_devices_cannot_share_ends_the_command(small: Small, tmp_path: Path) -> None:
    process = small.start(tmp_path / "run", env=environment(emulated=8), recipe=small.recipe(batch_size=12))
    printed = ended(process, status=2)
    assert "12 cannot be shared equally by 8 CPU devices" in printed
    assert "Traceback" not in printed


def test_the_command_names_what_it_found_instead_of_a_tpu(drawn_archive: Path, tmp_path: Path) -> None:
    words = ("--tpu", "--config", SMOKE, "--images", drawn_archive, "--out", tmp_path / "run")
    printed = ended(started("-m", "dicomnode", "train", *words, env=environment()), status=2)
    assert "--tpu: there is no TPU here; JAX found 1 CPU device (cpu:0). Leave --tpu out" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()
