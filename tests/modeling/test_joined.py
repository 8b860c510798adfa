"""Two exported graphs become one that computes what both do, and whose maps still sum to the logit."""

from pathlib import Path

import keras
import numpy as np
import onnx
import pytest

from dicomnode.bundle.manifest import Calibration
from dicomnode.domain.errors import ConfigurationError
from modeling.augment import network_inputs
from modeling.backbones.build import build_parts
from modeling.config import LiteModel
from modeling.gate import silent_gate
from modeling.joined import GRID, EnsemblePart, calibrated, join, part_calibrations, read_predicted, shared_out
from modeling.onnx_graph import Ensemble, run_graph, served_member, served_trunk, write_graph

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

OUTPUTS, SOURCE = 3, 64
PIXELS = np.random.default_rng(0).integers(0, 256, (2, SOURCE, SOURCE), dtype=np.uint8)


def part(folder: Path, name: str, side: int, members: int) -> tuple[EnsemblePart, Path]:
    """Return a part of three members, each with other weights, of which some are taken."""
    model = LiteModel(backbone="efficientnet-lite0", frozen_blocks=4, read_out="pyramid")
    parts = build_parts(model, side, OUTPUTS)
    random, heads = np.random.default_rng(side), []
    for _ in range(3):
        layer = parts.head.get_layer("logits")
        # Random weights without normalisation give tiny features.
        layer.set_weights(
            [random.normal(0, 1e4 if value.ndim > 1 else 1, value.shape) for value in layer.get_weights()]
        )
        heads.append(served_member(parts.head, model, side))
    ensemble = Ensemble(
        side=side, trunk=served_trunk(parts.trunk), members=tuple(heads), gate=silent_gate(parts.trunk, side)
    )
    path = folder / f"{name}.onnx"
    write_graph(ensemble, path)
    calibrations = tuple(Calibration(slope=0.5 + index, intercept=0.1 * index) for index in range(OUTPUTS))
    map_side = int(heads[0].get_layer("last_map").output.shape[1])
    made = EnsemblePart(
        name=name, model=onnx.load(path), side=side, map_side=map_side, members=members, calibrations=calibrations
    )
    return made, path


def test_the_joined_graph_has_the_members_of_both_and_maps_that_sum_to_their_mean(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    first, first_path = part(tmp_path, "own", 96, members=2)
    second, second_path = part(tmp_path, "other", 64, members=1)
    joined = tmp_path / "joined.onnx"
    joined.write_bytes(join(first, second, source_side=SOURCE).SerializeToString())
    found = run_graph(joined, network_inputs(PIXELS, SOURCE))
    one, two = run_graph(first_path, network_inputs(PIXELS, 96)), run_graph(second_path, network_inputs(PIXELS, 64))
    expected = [calibrated(first.calibrations, one["logits"][:, at]) for at in range(2)]
    expected.append(calibrated(second.calibrations, two["logits"][:, 0]))
    assert np.allclose(found["logits"], np.stack(expected, axis=1), atol=1e-4)
    assert found["maps"].shape == (2, GRID, GRID, OUTPUTS)
    assert np.allclose(found["typicality"], two["typicality"], atol=1e-5)
    sums = found["maps"].sum(axis=(1, 2))
    constant = found["logits"].mean(axis=1) - sums
    assert np.allclose(constant[0], constant[1], atol=1e-4), "the biases alone are not in the maps"
    assert np.abs(sums[0] - sums[1]).max() > 100 * np.abs(constant[0] - constant[1]).max()


@pytest.mark.parametrize("side", [5, 6, 10, 12, 24])
def test_cells_are_shared_out_whole(side: int) -> None:
    shares = shared_out(side)
    assert shares.shape == (GRID, side)
    assert np.allclose(shares.sum(axis=0) * side / GRID, side / GRID, atol=1e-5)


def test_each_part_is_calibrated_where_its_labels_are_known() -> None:
    random = np.random.default_rng(1)
    truth = (random.random((4000, 2)) < 0.3).astype(np.float32)
    logits = (2 * truth + random.normal(0, 1, truth.shape)).astype(np.float32)
    judged = truth.copy()
    judged[:2000, 1] = np.nan
    logits[:2000, 1] = 99
    for fitted in part_calibrations(judged, logits):
        assert fitted.slope == pytest.approx(2.0, abs=0.25)
        assert fitted.intercept == pytest.approx(np.log(0.3 / 0.7) - 2, abs=0.35)


def test_a_file_that_holds_no_predictions_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", names=np.array(["a"]))
    with pytest.raises(ConfigurationError, match="no out-of-fold logits"):
        read_predicted(tmp_path / "other.npz")
