"""The backend follows the device, and what does not fit together is refused by name."""

import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dicomnode.domain.errors import ConfigurationError
from modeling import devices
from modeling.devices import HOSTS, Hosts, Spread, alone, choose_backend, filled, named_hosts
from modeling.train import _meet

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]


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
