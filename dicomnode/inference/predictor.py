"""ONNX Runtime, set up: the graph on the execution providers that the settings name, with threads that step aside.

Frames to scores and saliency: one forward pass of the ensemble through ONNX Runtime.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from dicomnode.bundle.preprocess import preprocess
from dicomnode.bundle.reader import GOLDEN_TOLERANCE, Bundle
from dicomnode.domain.errors import BundleInvalid, ConfigurationError
from dicomnode.domain.finding import SaliencyMap, Score
from dicomnode.domain.frame import FloatArray, Frame

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


LOGITS, MAPS, TYPICALITY, ORIENTATION = "logits", "maps", "typicality", "orientation"
_OUTPUTS = (LOGITS, MAPS, TYPICALITY, ORIENTATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one forward pass says of one frame.

    `scores` and `saliency` follow the manifest's labels, abnormality first. `typicality` grows with the distance from
    the training distribution. `orientation`: (classes,) float64, softmax over the manifest's `gate.orientations`.
    """

    scores: tuple[Score, ...]
    saliency: tuple[SaliencyMap, ...]
    typicality: float
    orientation: npt.NDArray[np.float64]


class Predictor:
    """A loaded bundle, ready to read frames. Safe to call from several threads."""

    def __init__(self, bundle: Bundle, *, threads: int, providers: Sequence[str] = ("cpu",)) -> None:
        """Load the graph; see `open_session`.

        Raises: BundleInvalid, if the runtime refuses the graph or its outputs are not the contract's;
        ConfigurationError, if a provider is not to be had here.
        """
        self._bundle = bundle
        self._session = open_session(bundle.model_path, threads=threads, providers=providers)
        missing = set(_OUTPUTS) - {output.name for output in self._session.get_outputs()}
        if missing:
            raise BundleInvalid(f"{bundle.model_path} lacks the outputs {', '.join(sorted(missing))}")
        self._input = self._session.get_inputs()[0].name

    def replay_golden(self) -> float:
        """Run the golden vectors; this also warms the graph up. Return the largest difference from what they must give.

        Raises: BundleInvalid, if a value differs by more than `GOLDEN_TOLERANCE`.
        """
        golden = self._bundle.golden()
        outputs = self._run(golden.image)
        self._check_shapes(outputs, len(golden.image))
        worst = 0.0
        for name, expected in golden.outputs.items():
            actual = outputs.get(name)
            if actual is None or actual.shape != expected.shape:
                raise BundleInvalid(f"golden output {name!r} has no counterpart of its shape in the graph")
            scale = max(1.0, float(np.max(np.abs(expected))))
            worst = max(worst, float(np.max(np.abs(actual - expected))) / scale)
        if not worst <= GOLDEN_TOLERANCE:
            raise BundleInvalid(f"the model does not give its golden outputs here (difference {worst:.2g})")
        return worst

    def _check_shapes(self, outputs: dict[str, FloatArray], images: int) -> None:
        """Refuse a graph whose outputs are not those of the manifest's members and labels, whatever its golden ones."""
        manifest, maps = self._bundle.manifest, outputs[MAPS]
        labels = len(manifest.labels)
        wanted = {
            LOGITS: (images, manifest.members, labels),
            MAPS: (images, *maps.shape[1:3], labels),
            TYPICALITY: (images,),
            ORIENTATION: (images, len(manifest.gate.orientations)),
        }
        for name, shape in wanted.items():
            if outputs[name].shape != shape:
                raise BundleInvalid(f"the graph's output {name!r} has the shape {outputs[name].shape}, not {shape}")

    def read(self, frame: Frame) -> Reading:
        """Run the ensemble on one frame."""
        return self.read_batch([frame.pixels])[0]

    def read_batch(self, radiographs: Sequence[FloatArray]) -> tuple[Reading, ...]:
        """Run the ensemble on several radiographs at once, each as `Frame.pixels` holds it."""
        tensors = [preprocess(pixels, self._bundle.manifest.input) for pixels in radiographs]
        outputs = self._run(np.stack(tensors)[..., np.newaxis])
        return tuple(
            self._reading({name: values[at] for name, values in outputs.items()}) for at in range(len(tensors))
        )

    def _reading(self, outputs: dict[str, FloatArray]) -> Reading:
        """Interpret the outputs of one image."""
        logits = np.asarray(outputs[LOGITS], dtype=np.float64)
        maps = outputs[MAPS]
        scores, saliency = [], []
        for index, label in enumerate(self._bundle.manifest.labels):
            members = _sigmoid(label.calibration.slope * logits[:, index] + label.calibration.intercept)
            mean_logit = float(np.mean(logits[:, index]))
            ensemble = _sigmoid(np.asarray(label.calibration.slope * mean_logit + label.calibration.intercept))
            scores.append(
                Score(
                    label=label.name,
                    probability=float(ensemble),
                    member_probabilities=tuple(float(p) for p in members),
                    spread=float(np.std(members)),
                )
            )
            values = np.array(maps[:, :, index], dtype=np.float32)
            values.setflags(write=False)
            saliency.append(SaliencyMap(label=label.name, values=values))
        return Reading(
            scores=tuple(scores),
            saliency=tuple(saliency),
            typicality=float(outputs[TYPICALITY]),
            orientation=_softmax(np.asarray(outputs[ORIENTATION], dtype=np.float64)),
        )

    def _run(self, images: FloatArray) -> dict[str, FloatArray]:
        values = self._session.run(list(_OUTPUTS), {self._input: images})
        return dict(zip(_OUTPUTS, values, strict=True))


def _sigmoid(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)), dtype=np.float64)


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weights = np.exp(logits - np.max(logits))
    return np.asarray(weights / np.sum(weights), dtype=np.float64)
