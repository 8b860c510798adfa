"""Which backend Keras runs on, and over which devices and hosts a run spreads.

The backend follows the device: JAX on TPU and GPU, TensorFlow on a CPU, where XLA's depthwise convolutions are slow.
Nothing here imports a framework before it is asked to.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray

if TYPE_CHECKING:
    import keras

BACKEND = "KERAS_BACKEND"
BACKENDS = ("jax", "tensorflow")
HOSTS = ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_PROCESS_ID")
PREDICTED_AT_ONCE = 64
LOOKS = 60


def choose_backend(*, tpu: bool) -> str:
    """Choose the backend, before Keras is imported, join the other hosts, and return the backend's name.

    Without `tpu`, JAX is chosen where it sees an accelerator or several hosts are named, unless the environment names
    a backend.

    Raises: ConfigurationError naming the devices found when there is no TPU, or what stands in the way.
    """
    named, several = os.environ.get(BACKEND), named_hosts() is not None
    if named is not None and named not in BACKENDS:
        raise ConfigurationError(f"{BACKEND} is {named!r}; training runs on {' or '.join(BACKENDS)}")
    if tpu or several or named == "jax":
        _require_jax("--tpu" if tpu else "a run on several hosts" if several else f"{BACKEND}=jax", named)
        _join_hosts()
        backend = "jax"
    else:
        backend = named or _fitting_backend()
    if tpu:
        _require_tpu()
    loaded = sys.modules.get("keras")
    if loaded is not None and loaded.backend.backend() != backend:
        raise ConfigurationError(f"Keras already runs on {loaded.backend.backend()} in this process, not on {backend}")
    os.environ[BACKEND] = backend
    return backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """The address of a run's first process, HOST:PORT, the number of processes, and the place of this one."""

    first: str
    count: int
    place: int


def named_hosts() -> Hosts | None:
    """Return the hosts that the environment names with the variables of Keras, or None.

    Raises: ConfigurationError when they are incomplete or contradict each other.
    """
    addresses, count, place = (os.environ.get(name) for name in HOSTS)
    if addresses is None and count is None and place is None:
        return None
    listed = addresses.split(",") if addresses else []
    count = count or (str(len(listed)) if len(listed) > 1 else None)
    missing = [name for name, value in zip(HOSTS, (addresses, count, place), strict=True) if not value]
    if missing or count is None or place is None:
        raise ConfigurationError(f"a run on several hosts also needs {' and '.join(missing)} in the environment")
    if not (count.isdecimal() and place.isdecimal() and int(place) < int(count)):
        raise ConfigurationError(
            f"{HOSTS[2]} is {place!r} and {HOSTS[1]} {count!r}: not a place, from 0, among so many"
        )
    if len(listed) not in {1, int(count)}:
        raise ConfigurationError(f"{HOSTS[0]} lists {len(listed)} addresses, {HOSTS[1]} says {count}")
    if not listed[0].rpartition(":")[2].isdecimal() or ":" not in listed[0]:
        raise ConfigurationError(f"{HOSTS[0]} begins with {listed[0]!r}, which is not HOST:PORT")
    return Hosts(first=listed[0], count=int(count), place=int(place))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The devices of a run, of all hosts together, and which of its processes this one is."""

    platform: str = "cpu"
    devices: int = 1
    process_index: int = 0
    process_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.process_index == 0

    def describe(self) -> str:
        """Return the devices in words."""
        hosts = f" of {self.process_count} hosts" if self.process_count > 1 else ""
        return f"{self.devices} {self.platform.upper()} device{'s' if self.devices > 1 else ''}{hosts}"

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch that the devices cannot share equally.

        Raises: ConfigurationError.
        """
        if batch_size % self.devices:
            raise ConfigurationError(
                f"train.batch_size counts the images of all devices together: {batch_size} cannot be shared equally by"
                f" {self.describe()}"
            )

    def predict(self, model: "keras.Model", inputs: FloatArray) -> FloatArray:
        """Return the model's output for every row of (N, ...) inputs.

        Every batch has one size that the devices can share, whatever is asked for: the last is filled up and its
        outputs cut off again. Several hosts share the work; all must ask, for the same rows, and all get every output.
        """
        size = -(-PREDICTED_AT_ONCE // self.devices) * self.devices
        compute = model.predict_on_batch if self.devices == 1 else _shared_prediction(model)
        outputs = []
        for at in range(0, len(inputs), size):
            batch = inputs[at : at + size]
            outputs.append(np.asarray(compute(filled(batch, size)))[: len(batch)])
        return np.concatenate(outputs) if outputs else np.empty((0, *model.output.shape[1:]), dtype=np.float32)

    def meet(self) -> None:
        """Wait until every process has reached this point, so that all can read what the first has written."""
        if self.process_count > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("cxrnode")

    def agree(self, look: Callable[[], int]) -> bool:
        """Tell whether every process reads the same number; all processes must call this.

        A network file system may show a host's writes to another host late, so they read again for up to a minute.
        """
        if self.process_count == 1:
            return True
        from jax.experimental import multihost_utils

        for _ in range(LOOKS):
            number = look()
            if np.all(multihost_utils.process_allgather(np.int32(number)) == number):
                return True
            time.sleep(1)
        return False


def alone() -> Spread:
    """Return the spread of a process that uses one device."""
    return Spread()


def spread_over_devices() -> Spread:
    """Let Keras share every batch among all devices, if there are several, and return them."""
    import keras

    if keras.backend.backend() != "jax":
        return alone()
    import jax

    devices, processes = jax.devices(), jax.process_count()
    if len(devices) > 1:
        # Each process feeds its own rows of a batch, so Keras must not divide them once more.
        everywhere = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(everywhere)
    return Spread(
        platform=devices[0].platform,
        devices=len(devices),
        process_index=jax.process_index(),
        process_count=processes,
    )


def filled(batch: FloatArray, size: int) -> FloatArray:
    """Return the batch with its last row repeated up to `size` rows."""
    missing = size - len(batch)
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch


def _require_jax(asked: str, named: str | None) -> None:
    if named == "tensorflow":
        raise ConfigurationError(f"{asked} needs JAX, but {BACKEND} says tensorflow; unset it")
    if find_spec("jax") is None:
        raise ConfigurationError(
            f"{asked} needs JAX, which is not installed: pip install 'cxrnode[tpu]' for TPUs, 'cxrnode[gpu]' for GPUs"
        )


def _require_tpu() -> None:
    found = _jax_devices()
    if any(device.platform == "tpu" for device in found):
        return
    plural = "s" if len(found) > 1 else ""
    named = ", ".join(f"{device.platform}:{device.id}" for device in found)
    raise ConfigurationError(
        f"--tpu: there is no TPU here; JAX found {len(found)} {found[0].platform.upper()} device{plural} ({named})."
        " Leave --tpu out to train on what is here, or install JAX for TPU: pip install 'cxrnode[tpu]'"
    )


def _fitting_backend() -> str:
    if find_spec("jax") is None:
        return "tensorflow"
    _join_hosts()
    accelerated = any(device.platform != "cpu" for device in _jax_devices())
    return "jax" if accelerated or find_spec("tensorflow") is None else "tensorflow"


def _jax_devices() -> list[Any]:
    import jax

    try:
        return list(jax.devices())
    except RuntimeError as error:
        raise ConfigurationError(f"JAX cannot use this machine's devices: {error}") from error


def _join_hosts() -> None:
    """Join the other hosts of a run, once, before devices are asked for.

    They are those that the environment names, or, where JAX for TPU is installed, those of this host's pod slice,
    which JAX finds by itself.
    """
    import jax

    hosts = named_hosts()
    if jax.distributed.is_initialized() or (hosts is None and find_spec("libtpu") is None):
        return
    try:
        if hosts is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(hosts.first, hosts.count, hosts.place, cluster_detection_method="deactivate")
    except (ValueError, RuntimeError, OSError) as error:
        # What JAX says where it finds no pod slice, so that this host is alone.
        if hosts is None and "coordinator_address should be defined" in str(error):
            return
        raise ConfigurationError(f"the hosts of this run cannot be joined: {error}") from error


def _shared_prediction(model: "keras.Model") -> Callable[[FloatArray], Any]:
    """Return a function that computes a batch on all devices of all hosts and gives each host every row.

    Keras' own prediction leaves the rows where they were computed, and a host cannot read those of another.
    """
    import jax
    import keras

    everywhere = keras.distribution.distribution()
    mesh = everywhere.device_mesh.backend_mesh
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(everywhere.batch_dim_name))
    forward = _compiled(model, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    trained, others = (
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    def compute(batch: FloatArray) -> Any:
        return forward(trained, others, jax.make_array_from_callback(batch.shape, rows, lambda part: batch[part]))

    return compute


@lru_cache(maxsize=4)
def _compiled(model: "keras.Model", replicated: Any) -> Any:
    """Return the model as a function of its variables and a batch, compiled once, with its outputs everywhere."""
    import jax

    def forward(trained: list[Any], others: list[Any], batch: Any) -> Any:
        return model.stateless_call(trained, others, batch, training=False)[0]

    return jax.jit(forward, out_shardings=replicated)
