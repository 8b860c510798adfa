"""ONNX Runtime, set up: the graph on the execution providers that the settings name, with threads that step aside."""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from dicomnode.domain.errors import BundleInvalid, ConfigurationError

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_PACKAGES = {"cuda": "onnxruntime-gpu", "openvino": "onnxruntime-openvino"}
# The runtime's exceptions share no base class of their own.
_REFUSALS = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.InvalidProtobuf,
    runtime_errors.NoSuchFile,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
)
_ERRORS_ONLY = 3


def open_session(model: Path, *, threads: int, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    """Load a graph with `threads` threads (0: one per core) on the first of the `providers` that runs its nodes.

    Raises: BundleInvalid, if the runtime refuses the graph; ConfigurationError, if a provider is not to be had here.
    """
    wanted = [_available(name) for name in providers]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait by spinning took 52 ms of the two cores for an image instead of 38, from receiving and sending.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # To plan which results share memory took 1.5 of the 2 s of loading five EfficientNet-B2. Without the plan outputs
    # are the same bits, in the same time, and memory is the same: the arena gives it out again anyway.
    options.enable_mem_reuse = False
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=wanted)
    except _REFUSALS as error:
        raise BundleInvalid(f"{model} is not a graph that ONNX Runtime loads") from error
    # The runtime leaves out silently what cannot be started, for want of a driver for example.
    for name in providers:
        if _PROVIDERS[name] not in session.get_providers():
            raise ConfigurationError(f"inference.providers: {name} cannot be started on this machine")
    return session


def _available(name: str) -> str:
    present = onnxruntime.get_available_providers()
    if _PROVIDERS[name] not in present:
        known = ", ".join(short for short, full in _PROVIDERS.items() if full in present)
        raise ConfigurationError(
            f"inference.providers: this ONNX Runtime has no {name}, only {known}; "
            f"install {_PACKAGES.get(name, 'onnxruntime')} in its place"
        )
    return _PROVIDERS[name]
