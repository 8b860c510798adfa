"""The pixel gate of a finished bundle, measured on images of known kind that it was not fitted on."""

import csv
import io
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from dicomnode.bundle.manifest import GateSpec, InputSpec
from dicomnode.bundle.preprocess import preprocess
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.gate import TURNS

INPUT = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class KindResult:
    """How many images of one kind passed the gate; `repaired` of those passed only after being turned or inverted."""

    kind: str
    images: int
    passed: int
    repaired: int


def measure_gate(model: Path, spec: InputSpec, gate: GateSpec, archive: Path) -> tuple[KindResult, ...]:
    """Return the gate's outcome per kind and view on a ZIP archive with a `manifest.csv` (image, kind, view).

    Raises: ConfigurationError when the archive cannot be read.
    """
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    images: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    for kind, pixels in _read(archive):
        images[kind] += 1
        turned = _wanted_repair(session, pixels, spec, gate)
        righted = pixels if turned is None else _righted(pixels, gate.orientations[turned])
        if _passes(session, righted, spec, gate):
            passed[kind] += 1
            repaired[kind] += turned is not None
    return tuple(
        KindResult(kind=kind, images=images[kind], passed=passed[kind], repaired=repaired[kind])
        for kind in sorted(images)
    )


def _wanted_repair(
    session: onnxruntime.InferenceSession, pixels: FloatArray, spec: InputSpec, gate: GateSpec
) -> int | None:
    """Return the orientation class to undo, or None when the image is upright or not certainly turned."""
    _, probability = _outputs(session, pixels, spec)
    best = int(np.argmax(probability))
    return best if best != gate.orientations.index("upright") and probability[best] >= gate.certain else None


def _passes(session: onnxruntime.InferenceSession, pixels: FloatArray, spec: InputSpec, gate: GateSpec) -> bool:
    typicality, probability = _outputs(session, pixels, spec)
    upright = int(np.argmax(probability)) == gate.orientations.index("upright")
    return upright and typicality <= gate.typicality_threshold


def _outputs(session: onnxruntime.InferenceSession, pixels: FloatArray, spec: InputSpec) -> tuple[float, FloatArray]:
    tensor = preprocess(pixels, spec)[np.newaxis, :, :, np.newaxis]
    typicality, logits = session.run(["typicality", "orientation"], {INPUT: tensor})
    powers = np.exp(logits[0] - logits[0].max())
    return float(typicality[0]), np.asarray(powers / powers.sum(), dtype=np.float32)


def _righted(pixels: FloatArray, orientation: str) -> FloatArray:
    turns = TURNS.index(orientation.removeprefix("inverted-"))
    turned = np.rot90(1.0 - pixels if orientation.startswith("inverted-") else pixels, -turns)
    return np.ascontiguousarray(turned)


def _read(archive: Path) -> list[tuple[str, FloatArray]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            rows = list(csv.DictReader(io.StringIO(opened.read("manifest.csv").decode("utf-8"))))
            return [(_kind(row), _decode(opened.read(row["image"]))) for row in rows]
    except (OSError, KeyError, zipfile.BadZipFile, cv2.error) as error:
        raise ConfigurationError(f"{archive} is not an archive of gate images with a manifest.csv") from error


def _kind(row: dict[str, str]) -> str:
    """Return what the image shows: views of a frontal do not matter here, kinds of other images do."""
    return "frontal" if row["kind"] == "frontal" else f"{row['kind']} {row['view']}"


def _decode(raw: bytes) -> FloatArray:
    image = cv2.imdecode(np.frombuffer(raw, dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(image, dtype=np.float32) / 255.0
