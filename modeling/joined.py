"""Members of another bundle beside those of a run: one graph, two backbones.

Two networks of different make err on different patients, so their mean is better than that of more members of one
make, in the same time. Each part enlarges the image to its own side, and its logits are first calibrated by its own
out-of-fold predictions, so that both speak on one scale. The gate is the other bundle's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.compose import add_prefix
from onnx.utils import Extractor

from dicomnode.bundle.manifest import Calibration
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.calibration import fit_calibration
from modeling.run import read_arrays

LOGITS, MAPS, GATE = "logits", "maps", ("typicality", "orientation")
INPUT = "image"
GRID = 12
"""Side of the common grid of maps: each part's cells are shared out by the area they have in a cell of the grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsemblePart:
    """A graph of the contract, the sides it reads and maps, how many members to take, and its outputs' calibrations."""

    name: str
    model: onnx.ModelProto
    side: int
    map_side: int
    members: int
    calibrations: tuple[Calibration, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Out-of-fold logits of a bundle's own training images: (N,) names, (N, outputs) logits."""

    names: tuple[str, ...]
    logits: FloatArray


def read_predicted(path: Path) -> Predicted:
    """Read what a run wrote as `out-of-fold.npz`.

    Raises: ConfigurationError.
    """
    arrays = read_arrays(path)
    try:
        return Predicted(names=tuple(map(str, arrays["names"])), logits=arrays["logits"].astype(np.float32))
    except KeyError as error:
        raise ConfigurationError(f"{path} holds no out-of-fold logits") from error


def part_calibrations(judged: FloatArray, logits: FloatArray) -> tuple[Calibration, ...]:
    """Return Platt's sigmoid for each output of one part, from (N, outputs) labels and logits, NaN where not known."""
    fitted = []
    for truth, scores in zip(judged.T, logits.T, strict=True):
        known = ~np.isnan(truth) & ~np.isnan(scores)
        fitted.append(fit_calibration(truth[known] > 0.5, scores[known]))
    return tuple(fitted)


def calibrated(calibrations: Sequence[Calibration], logits: FloatArray) -> FloatArray:
    """Return (N, outputs) logits on the scale of probabilities."""
    slopes, intercepts = _coefficients(calibrations)
    return np.asarray(logits * slopes + intercepts, dtype=np.float32)


def join(first: EnsemblePart, gated: EnsemblePart, source_side: int) -> onnx.ModelProto:
    """Return one graph of the contract that reads images of `source_side`; the second part brings the gate."""
    first_model, gated_model = _pruned(first, gate=False), _pruned(gated, gate=True)
    graph = helper.make_graph(
        [], "joined", [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, source_side, source_side, 1])], []
    )
    for part, model in ((first, first_model), (gated, gated_model)):
        _add(graph, part, model, source_side)
    _add_outputs(graph, (first, gated))
    opset = [helper.make_opsetid("", first.model.opset_import[0].version)]
    joined = helper.make_model(graph, opset_imports=opset, ir_version=first.model.ir_version)
    onnx.checker.check_model(joined, full_check=True)
    return joined


def _pruned(part: EnsemblePart, *, gate: bool) -> onnx.ModelProto:
    """Return the part's graph with an output for the logits and the map of every member that is taken."""
    logits, maps = _member_tensors(part.model)
    wanted = [*logits[: part.members], *maps[: part.members], *(GATE if gate else ())]
    model = onnx.ModelProto()
    model.CopyFrom(part.model)
    known = {info.name for info in (*model.graph.value_info, *model.graph.output)}
    for name in wanted:
        if name not in known:
            model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return Extractor(model).extract_model([INPUT], wanted)


def _member_tensors(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Return the names of the members' logits and maps, in order, from how the graphs of the contract stack them."""
    made_by = {output: node for node in model.graph.node for output in node.output}

    def behind_identities(name: str) -> str:
        while made_by[name].op_type == "Identity":
            name = made_by[name].input[0]
        return name

    stacked = made_by[behind_identities(LOGITS)]
    if stacked.op_type != "Concat":
        raise ConfigurationError("the graph does not stack its members' logits: only exported ensembles can be joined")
    logits = [made_by[name].input[0] for name in stacked.input]
    total = made_by[behind_identities(MAPS)].input[0]
    maps: list[str] = []
    while len(maps) < len(logits) - 1:
        total, last = made_by[total].input
        maps.insert(0, last)
    return logits, [total, *maps]


def _add(graph: onnx.GraphProto, part: EnsemblePart, model: onnx.ModelProto, source_side: int) -> None:
    """Add the part's nodes under its own names, after the image is enlarged to its side."""
    inner = add_prefix(model, f"{part.name}/").graph
    enlarged = f"{part.name}/{INPUT}"
    if part.side == source_side:
        graph.node.append(helper.make_node("Identity", [INPUT], [enlarged]))
    else:
        _enlarge(graph, part, source_side, enlarged)
    graph.initializer.extend(inner.initializer)
    graph.node.extend(inner.node)


def _enlarge(graph: onnx.GraphProto, part: EnsemblePart, source_side: int, out: str) -> None:
    """Enlarge as `dicomnode.bundle.preprocess` does, cubic and cut off at 0 and 1: ten times faster than `Resize`."""
    unit = np.eye(source_side, dtype=np.float32)
    matrix = cv2.resize(unit, (source_side, part.side), interpolation=cv2.INTER_CUBIC)
    rows = _constant(graph, f"{part.name}/rows", matrix)
    columns = _constant(graph, f"{part.name}/columns", np.ascontiguousarray(matrix.T))
    low, high = (
        _constant(graph, f"{part.name}/low", np.float32(0)),
        _constant(graph, f"{part.name}/high", np.float32(1)),
    )
    planes, tall, wide, back = (f"{part.name}/{name}" for name in ("planes", "tall", "wide", "back"))
    graph.node.extend(
        [
            helper.make_node("Transpose", [INPUT], [planes], perm=[0, 3, 1, 2]),
            helper.make_node("MatMul", [rows, planes], [tall]),
            helper.make_node("MatMul", [tall, columns], [wide]),
            helper.make_node("Transpose", [wide], [back], perm=[0, 2, 3, 1]),
            helper.make_node("Clip", [back, low, high], [out]),
        ]
    )


def _add_outputs(graph: onnx.GraphProto, parts: Sequence[EnsemblePart]) -> None:
    """Add the contract's outputs: all members' logits, the mean of all members' maps, and the gate's two."""
    members = sum(part.members for part in parts)
    rows, weighed = [], []
    axis = _constant(graph, "member_axis", np.array([1]))
    for part in parts:
        logits, maps = _member_tensors(part.model)
        slopes, intercepts = _coefficients(part.calibrations)
        slope, offset = (
            _constant(graph, f"{part.name}/slope", slopes),
            _constant(graph, f"{part.name}/offset", intercepts),
        )
        share = _constant(graph, f"{part.name}/share", (slopes / members).astype(np.float32))
        for at in range(part.members):
            own, row = f"{part.name}/{logits[at]}", f"{part.name}/row{at}"
            graph.node.append(helper.make_node("Mul", [own, slope], [f"{row}/scaled"]))
            graph.node.append(helper.make_node("Add", [f"{row}/scaled", offset], [f"{row}/moved"]))
            graph.node.append(helper.make_node("Unsqueeze", [f"{row}/moved", axis], [row]))
            rows.append(row)
        summed = f"{part.name}/maps_sum"
        graph.node.append(helper.make_node("Sum", [f"{part.name}/{maps[at]}" for at in range(part.members)], [summed]))
        weighed.append(_on_grid(graph, part, summed, share))
    graph.node.append(helper.make_node("Concat", rows, [LOGITS], axis=1))
    graph.node.append(helper.make_node("Sum", weighed, [MAPS]))
    outputs = len(parts[0].calibrations)
    for name in GATE:
        graph.node.append(helper.make_node("Identity", [f"{parts[-1].name}/{name}"], [name]))
    shapes = {LOGITS: [None, members, outputs], MAPS: [None, GRID, GRID, outputs], GATE[0]: [None], GATE[1]: [None, 8]}
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())


def _on_grid(graph: onnx.GraphProto, part: EnsemblePart, maps: str, share: str) -> str:
    """Weigh the maps by output and share their cells out over the common grid; their sums stay."""
    matrix = _constant(graph, f"{part.name}/cells", shared_out(part.map_side))
    turned = _constant(graph, f"{part.name}/cells_turned", np.ascontiguousarray(shared_out(part.map_side).T))
    name = f"{part.name}/grid"
    graph.node.extend(
        [
            helper.make_node("Mul", [maps, share], [f"{name}/shared"]),
            helper.make_node("Transpose", [f"{name}/shared"], [f"{name}/planes"], perm=[0, 3, 1, 2]),
            helper.make_node("MatMul", [matrix, f"{name}/planes"], [f"{name}/down"]),
            helper.make_node("MatMul", [f"{name}/down", turned], [f"{name}/across"]),
            helper.make_node("Transpose", [f"{name}/across"], [name], perm=[0, 2, 3, 1]),
        ]
    )
    return name


def shared_out(side: int) -> npt.NDArray[np.float32]:
    """Return (GRID, side): the share of each of `side` equal cells that lies in each cell of the grid."""
    edges, cells = np.linspace(0, side, GRID + 1), np.arange(side)
    covered = np.minimum(edges[1:, np.newaxis], cells + 1) - np.maximum(edges[:-1, np.newaxis], cells)
    return np.asarray(np.clip(covered, 0, None), dtype=np.float32)


def _coefficients(calibrations: Sequence[Calibration]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    slopes = np.array([each.slope for each in calibrations], dtype=np.float32)
    return slopes, np.array([each.intercept for each in calibrations], dtype=np.float32)


def _constant(graph: onnx.GraphProto, name: str, value: npt.NDArray[np.generic] | np.generic) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name
