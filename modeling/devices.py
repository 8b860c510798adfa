"""Which backend Keras runs on, and over which devices and hosts a run spreads.

The backend follows the device: JAX on TPU and GPU, TensorFlow on a CPU, where XLA's depthwise convolutions are slow.
Nothing here imports a framework before it is asked to.
"""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray

if TYPE_CHECKING:
    import keras

BACKEND = "KERAS_BACKEND"
BACKENDS = ("jax", "tensorflow")
HOSTS = "KERAS_DISTRIBUTION_NUM_PROCESSES"
POD = "TPU_WORKER_HOSTNAMES"
PREDICTED_AT_ONCE = 64


def choose_backend(*, tpu: bool) -> str:
    """Choose the backend, before Keras is imported, join the other hosts, and return the backend's name.

    Without `tpu`, JAX is chosen where it sees an accelerator, unless the environment names a backend.

    Raises: ConfigurationError naming the devices found when there is no TPU, or what stands in the way.
    """
    named = os.environ.get(BACKEND)
    if named is not None and named not in BACKENDS:
        raise ConfigurationError(f"{BACKEND} is {named!r}; training runs on {' or '.join(BACKENDS)}")
    if tpu and named == "tensorflow":
        raise ConfigurationError(f"--tpu needs JAX, but {BACKEND} says tensorflow; unset it")
    if tpu:
        _require_tpu()
        backend = "jax"
    else:
        backend = named or ("jax" if _sees_accelerator() else "tensorflow")
    loaded = sys.modules.get("keras")
    if loaded is not None and loaded.backend.backend() != backend:
        raise ConfigurationError(f"Keras already runs on {loaded.backend.backend()} in this process, not on {backend}")
    os.environ[BACKEND] = backend
    if backend == "jax":
        _join_hosts()
    return backend


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
        outputs cut off again. Several hosts predict each for itself.
        """
        size = -(-PREDICTED_AT_ONCE // self.devices) * self.devices
        compute = model.predict_on_batch if self.process_count == 1 else _local_prediction(model)
        outputs = []
        for at in range(0, len(inputs), size):
            batch = inputs[at : at + size]
            outputs.append(np.asarray(compute(filled(batch, size)))[: len(batch)])
        return np.concatenate(outputs) if outputs else np.empty((0, *model.output.shape[1:]), dtype=np.float32)

    def meet(self) -> None:
        """Wait until every process has come here: what the first has written, the others may read."""
        if self.process_count > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("cxrnode")


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


def _require_tpu() -> None:
    if find_spec("jax") is None:
        raise ConfigurationError("--tpu needs JAX, which is not installed: pip install 'cxrnode[tpu]'")
    _join_hosts()
    found = _jax_devices()
    if not found or found[0].platform != "tpu":
        named = ", ".join(f"{device.platform}:{device.id}" for device in found) or "none"
        raise ConfigurationError(
            f"--tpu: there is no TPU here; JAX found these devices: {named}. Leave --tpu out to train on them, or"
            " install JAX for TPU: pip install 'cxrnode[tpu]'"
        )


def _sees_accelerator() -> bool:
    if find_spec("jax") is None:
        return False
    _join_hosts()
    return any(device.platform != "cpu" for device in _jax_devices())


def _jax_devices() -> list[Any]:
    import jax

    try:
        return list(jax.devices())
    except RuntimeError as error:
        raise ConfigurationError(f"JAX cannot use this machine's devices: {error}") from error


def _join_hosts() -> None:
    """Join the other hosts of a run, where the environment says that there are any; once, before devices are asked for.

    A TPU pod tells its hosts by itself; elsewhere Keras' own variables name the first host, the number of processes
    and this one's place.
    """
    import jax

    several = "," in os.environ.get(POD, "") or HOSTS in os.environ
    if not several or jax.distributed.is_initialized():
        return
    names = ("KERAS_DISTRIBUTION_JOB_ADDRESSES", HOSTS, "KERAS_DISTRIBUTION_PROCESS_ID")
    addresses, count, place = (os.environ.get(name) for name in names)
    try:
        jax.distributed.initialize(
            coordinator_address=addresses.split(",")[0] if addresses else None,
            num_processes=int(count) if count else None,
            process_id=int(place) if place else None,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(f"the hosts of this run cannot be joined ({', '.join(names)}): {error}") from error


def _local_prediction(model: "keras.Model") -> Any:
    """Return a function that computes the model on this host's first device.

    With several hosts the weights are on all of them, and one host cannot read what another's devices computed.
    """
    import jax

    def local(variables: list[Any]) -> list[Any]:
        return [variable.value.addressable_data(0) for variable in variables]

    trained, others = local(model.trainable_variables), local(model.non_trainable_variables)
    return jax.jit(lambda batch: model.stateless_call(trained, others, batch, training=False)[0])
