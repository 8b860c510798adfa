"""A tiny bundle with the contract's shape, for tests of the path around the model."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from dicomnode.bundle.manifest import (
    Calibration,
    CodeEntry,
    Curves,
    GateSpec,
    InputSpec,
    LabelEntry,
    Manifest,
    OperatingPointEntry,
    Provenance,
    ReliabilityBin,
    RocCurve,
)
from dicomnode.domain.finding import Code
from dicomnode.domain.terminology import ABNORMALITY, NIH_TERMS

SIDE, MEMBERS, GRID = 64, 5, 8
SLOPE, INTERCEPT = 0.8, 0.1
ORIENTATIONS = tuple(f"{sign}{turn}" for sign in ("", "inverted-") for turn in ("upright", "rot90", "rot180", "rot270"))


Labels = tuple[tuple[str, CodeEntry | None, CodeEntry | None], ...]
"""Name, code and site of each output."""


def _entry(code: Code) -> CodeEntry:
    return CodeEntry(value=code.value, scheme=code.scheme, meaning=code.meaning)


NIH_LABELS: Labels = (
    (ABNORMALITY, None, None),
    *((term.label, _entry(term.code), _entry(term.site)) for term in NIH_TERMS.values()),
)
OTHER_LABELS: Labels = (
    ("Not normal", CodeEntry(value="REVIEW", scheme="99HOSPITAL", meaning="To be seen before discharge"), None),
    (
        "Tuberculosis",
        CodeEntry(value="154283005", scheme="SCT", meaning="Pulmonary tuberculosis"),
        CodeEntry(value="39607008", scheme="SCT", meaning="Lung"),
    ),
    (
        "Rib fracture",
        CodeEntry(value="33737001", scheme="SCT", meaning="Fracture of rib"),
        CodeEntry(value="113197003", scheme="SCT", meaning="Rib"),
    ),
    (
        "Tube (endotracheal)",
        CodeEntry(value="26412008", scheme="SCT", meaning="Endotracheal tube"),
        CodeEntry(value="44567001", scheme="SCT", meaning="Trachea"),
    ),
    ("Silhouette_sign", CodeEntry(value="SILHOUETTE", scheme="99HOSPITAL", meaning="Silhouette sign"), None),
)
"""A model of another kind: other findings, another number of them, and codes of its hospital's own."""


def make_bundle(
    folder: Path,
    *,
    threshold: float = 0.5,
    typicality_threshold: float = 1.0,
    unusual_threshold: float | None = None,
    orientation: int = 0,
    seed: int = 7,
    labels: Labels = NIH_LABELS,
    curves: bool = False,
) -> Path:
    """Write a bundle whose outputs, one a label, are fixed linear functions of the image's 8 × 8 block means.

    Its `typicality` is the mean of the model input; its `orientation` is always the class of that index. With `curves`
    every output but the last has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_graph(orientation, seed, len(labels)), str(folder / "model.onnx"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(seed).random((2, SIDE, SIDE, 1), dtype=np.float32)
    names = [output.name for output in session.get_outputs()]
    np.savez(folder / "golden.npz", image=image, **dict(zip(names, session.run(names, {"image": image}), strict=True)))
    (folder / "MODEL_CARD.md").write_text("# A tiny model for tests\n")
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.onnx", "golden.npz", "MODEL_CARD.md")
    }
    gate = GateSpec(
        typicality_threshold=typicality_threshold,
        unusual_threshold=unusual_threshold,
        orientations=ORIENTATIONS,
        certain=0.98,
    )
    manifest = _manifest(threshold, gate, files, labels, curves=curves)
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2))
    return folder


def _graph(orientation: int, seed: int, outputs_of_head: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    classes = np.full((1, len(ORIENTATIONS)), -20.0, dtype=np.float32)
    classes[0, orientation] = 20.0
    constants = {
        "weights": rng.normal(0, 4, (outputs_of_head, 1, 1, 1)).astype(np.float32),
        "members": np.linspace(0.8, 1.2, MEMBERS, dtype=np.float32).reshape(1, MEMBERS, 1),
        "cells": np.asarray(GRID * GRID, dtype=np.float32),
        "zeros": np.zeros((1, len(ORIENTATIONS)), dtype=np.float32),
        "classes": classes,
        "middle": np.asarray(0.5, dtype=np.float32),
        "space": np.asarray([1, 2], dtype=np.int64),
        "member_axis": np.asarray([1], dtype=np.int64),
        "row": np.asarray([-1, 1], dtype=np.int64),
        "everything": np.asarray([1, 2, 3], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Sub", ["image", "middle"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["blocks"], kernel_shape=[GRID, GRID], strides=[GRID, GRID]),
        helper.make_node("Conv", ["blocks", "weights"], ["activations"]),
        helper.make_node("Transpose", ["activations"], ["grid"], perm=[0, 2, 3, 1]),
        helper.make_node("Div", ["grid", "cells"], ["maps"]),
        helper.make_node("ReduceSum", ["maps", "space"], ["mean_logits"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean_logits", "member_axis"], ["one_member"]),
        helper.make_node("Mul", ["one_member", "members"], ["logits"]),
        helper.make_node("ReduceMean", ["image", "everything"], ["typicality"], keepdims=0),
        helper.make_node("Reshape", ["typicality", "row"], ["column"]),
        helper.make_node("MatMul", ["column", "zeros"], ["nothing"]),
        helper.make_node("Add", ["nothing", "classes"], ["orientation"]),
    ]
    outputs = {"logits": 3, "maps": 4, "typicality": 1, "orientation": 2}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", SIDE, SIDE, 1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name, rank in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def made_curves() -> Curves:
    """Return curves of 1,000 images with an area of 0.785."""
    rates, found = (0.0, 0.1, 0.3, 1.0), (0.0, 0.5, 0.8, 1.0)
    return Curves(
        derived_on="drawn chests, out of fold",
        images=1000,
        patients=400,
        roc=RocCurve(
            false_positive_rate=rates,
            sensitivity=found,
            low=(0.0, 0.42, 0.75, 1.0),
            high=(0.05, 0.57, 0.84, 1.0),
        ),
        reliability=tuple(
            ReliabilityBin(predicted=0.04 * at, observed=0.05 * at, low=0.03 * at, high=0.05 + 0.05 * at, images=100)
            for at in range(10)
        ),
    )


def _manifest(threshold: float, gate: GateSpec, files: dict[str, str], labels: Labels, *, curves: bool) -> Manifest:
    point = OperatingPointEntry(
        threshold=threshold, sensitivity=0.8, specificity=0.7, derived_on="nothing", chosen_by="hand"
    )
    if curves:
        intervals = {"sensitivity_interval": (0.75, 0.84), "specificity_interval": (0.66, 0.73)}
        point = point.model_copy(update=intervals)

    def label(name: str, code: CodeEntry | None, site: CodeEntry | None) -> LabelEntry:
        has_curves = curves and name != labels[-1][0]
        return LabelEntry(
            name=name,
            code=code,
            site=site,
            calibration=Calibration(slope=SLOPE, intercept=INTERCEPT),
            operating_points={"youden": point, "sensitivity_95": point},
            auc=made_curves().roc.area if has_curves else None,
            auc_interval=(0.76, 0.82) if has_curves else None,
            positives=200 if has_curves else 0,
            curves=made_curves() if has_curves else None,
        )

    return Manifest(
        schema_version=1,
        name="tiny",
        version="0.0.1",
        created="2026-01-01",
        intended_use="tests only",
        backbone="block means",
        members=MEMBERS,
        input=InputSpec(side=SIDE, source_side=SIDE),
        labels=tuple(label(*entry) for entry in labels),
        default_operating_point="youden",
        undetermined_spread=0.2,
        gate=gate,
        provenance=Provenance(data="none", images=0, patients=0, folds=MEMBERS, recipe="none", licences=()),
        files=files,
    )
