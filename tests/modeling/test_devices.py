"""The backend follows the device, and the devices and hosts of a run change nothing that it learns.

Training here runs in processes of its own, since a process has one backend and one number of devices for life.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dicomnode.domain.errors import ConfigurationError
from modeling import devices
from modeling.devices import HOSTS, Hosts, Spread, alone, choose_backend, filled, named_hosts
from modeling.train import _meet
from tests.processes import free_port

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


@pytest.fixture(autouse=True)
def no_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    for name in (*HOSTS, "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the devices that JAX finds, for a test to change."""
    present = [SimpleNamespace(platform="cpu", id=0)]
    monkeypatch.setattr(devices, "_jax_devices", lambda: present)
    return present


def forget(monkeypatch: pytest.MonkeyPatch, *missing: str, present: Sequence[str] = ()) -> None:
    """Have packages look as if they were not installed, or as if they were."""
    real = devices.find_spec

    def find(name: str) -> Any:
        return None if name in missing else SimpleNamespace() if name in present else real(name)

    monkeypatch.setattr(devices, "find_spec", find)


def test_a_cpu_trains_with_tensorflow(found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend(tpu=False) == "tensorflow"
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    monkeypatch.delenv("KERAS_BACKEND")
    forget(monkeypatch, "jax")
    assert choose_backend(tpu=False) == "tensorflow"


def test_an_accelerator_trains_with_jax(found: list[Any]) -> None:
    found[:] = [SimpleNamespace(platform="gpu", id=0)]
    assert choose_backend(tpu=False) == "jax"


def test_jax_alone_trains_on_a_cpu(found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "tensorflow")
    assert choose_backend(tpu=False) == "jax"


def test_the_environment_decides_without_tpu(found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found[:] = [SimpleNamespace(platform="gpu", id=0)]
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert choose_backend(tpu=False) == "tensorflow"
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    found[:] = [SimpleNamespace(platform="cpu", id=0)]
    assert choose_backend(tpu=False) == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(ConfigurationError, match="KERAS_BACKEND is 'torch'; training runs on jax or tensorflow"):
        choose_backend(tpu=False)


def test_a_tpu_is_used_when_asked_for(found: list[Any]) -> None:
    found[:] = [SimpleNamespace(platform="tpu", id=index) for index in range(4)]
    assert choose_backend(tpu=True) == "jax"


def test_tpu_against_the_environment_is_refused(found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    with pytest.raises(ConfigurationError, match="--tpu needs JAX, but KERAS_BACKEND says tensorflow; unset it"):
        choose_backend(tpu=True)


@pytest.mark.parametrize(("named", "tpu", "asked"), [(None, True, "--tpu"), ("jax", False, "KERAS_BACKEND=jax")])
def test_jax_that_is_missing_is_named(
    named: str | None, tpu: bool, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch, "jax")
    if named:
        monkeypatch.setenv("KERAS_BACKEND", named)
    with pytest.raises(ConfigurationError, match=rf"{asked} needs JAX, which is not installed: .*cxrnode\[tpu\]"):
        choose_backend(tpu=tpu)


def test_every_device_found_instead_of_a_tpu_is_named(found: list[Any]) -> None:
    found[:] = [SimpleNamespace(platform="gpu", id=index) for index in range(2)]
    with pytest.raises(ConfigurationError, match=r"JAX found 2 GPU devices \(gpu:0, gpu:1\)\. Leave --tpu"):
        choose_backend(tpu=True)


def test_keras_on_another_backend_is_too_late(found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "tensorflow"))
    monkeypatch.setitem(sys.modules, "keras", loaded)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ConfigurationError, match="Keras already runs on tensorflow in this process, not on jax"):
        choose_backend(tpu=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("10.0.0.1:99", None, None), f"also needs {HOSTS[1]} and {HOSTS[2]}"),
        ((None, "2", "0"), f"also needs {HOSTS[0]}"),
        (("10.0.0.1:99", "2", "2"), f"{HOSTS[2]} is '2' and {HOSTS[1]} '2': not a place"),
        (("10.0.0.1:99", "two", "0"), "not a place"),
        (("10.0.0.1:99,10.0.0.2:99", "3", "0"), f"{HOSTS[0]} lists 2 addresses, {HOSTS[1]} says 3"),
        (("10.0.0.1", "2", "0"), "begins with '10.0.0.1', which is not HOST:PORT"),
    ],
)
def test_hosts_that_do_not_fit_are_refused(
    values: tuple[str | None, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_hosts(monkeypatch, values)
    with pytest.raises(ConfigurationError, match=message):
        choose_backend(tpu=False)


def test_hosts_are_counted_by_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_hosts() is None
    name_hosts(monkeypatch, ("10.0.0.1:99,10.0.0.2:99", None, "1"))
    assert named_hosts() == Hosts(first="10.0.0.1:99", count=2, place=1)


def test_several_hosts_are_not_left_out_by_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    name_hosts(monkeypatch, ("10.0.0.1:99", "2", "0"))
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    with pytest.raises(ConfigurationError, match="a run on several hosts needs JAX"):
        choose_backend(tpu=False)


def name_hosts(monkeypatch: pytest.MonkeyPatch, values: tuple[str | None, ...]) -> None:
    for name, value in zip(HOSTS, values, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)


def test_a_host_without_a_pod_slice_trains_alone(found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What JAX itself answers here decides, so that a new wording of its error shows."""
    for name in ("KUBERNETES_SERVICE_HOST", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    forget(monkeypatch, present=["libtpu"])
    found[:] = [SimpleNamespace(platform="tpu", id=0)]
    assert choose_backend(tpu=True) == "jax"


def test_a_pod_slice_that_cannot_be_joined_is_an_error(found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to recognize coordinator address worker-0")

    forget(monkeypatch, present=["libtpu"])
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ConfigurationError, match="cannot be joined: Failed to recognize coordinator address worker-0"):
        choose_backend(tpu=True)


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    spread = Spread(platform="tpu", devices=8, process_index=1, process_count=2)
    spread.check_batch(64)
    with pytest.raises(ConfigurationError, match="60 cannot be shared equally by 8 TPU devices of 2 hosts"):
        spread.check_batch(60)


def test_only_the_first_process_writes() -> None:
    assert alone().is_first
    assert not Spread(process_index=1, process_count=2).is_first


@pytest.mark.parametrize("count", [0, 1, 7, 64, 65])
def test_prediction_keeps_every_row_and_one_shape(count: int) -> None:
    sizes = []

    def predict(batch: Any) -> Any:
        sizes.append(len(batch))
        return 2 * batch

    rows = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    model = SimpleNamespace(predict_on_batch=predict, output=np.empty((64, 3)))
    assert np.array_equal(alone().predict(model, rows), 2 * rows)
    assert set(sizes) <= {64}


def test_a_batch_is_filled_with_its_last_row() -> None:
    batch = np.array([[1.0], [2.0]], dtype=np.float32)
    assert filled(batch, 4).tolist() == [[1.0], [2.0], [2.0], [2.0]]
    assert filled(batch, 2) is batch


def test_hosts_that_see_different_files_stop() -> None:
    run = SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(folds=1)), records=lambda fold: (), folder="out")
    spread = SimpleNamespace(meet=lambda: None, agree=lambda look: False)
    with pytest.raises(ConfigurationError, match="not every host sees what another writes into out"):
        _meet(run, SimpleNamespace(spread=spread))


def environment(*, emulated: int = 1, backend: str = "jax", **more: str) -> dict[str, str]:
    """Return this process's environment with the backend and so many emulated devices."""
    fixed = {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "200"}
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={emulated}"}
    return os.environ | fixed | flags | more


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
