"""Frames to scores and saliency: one forward pass of the ensemble through ONNX Runtime."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dicomnode.bundle.preprocess import preprocess
from dicomnode.bundle.reader import GOLDEN_TOLERANCE, Bundle
from dicomnode.domain.errors import BundleInvalid
from dicomnode.domain.finding import SaliencyMap, Score
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.inference.session import open_session

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
