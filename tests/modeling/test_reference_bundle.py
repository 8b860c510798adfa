from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dicomnode.bundle.reader import Bundle, open_bundle
from modeling.config import read_config
from modeling.nih import LABELS

ROOT = Path(__file__).parents[2]
OWN_MEMBERS, OTHER_MEMBERS = 3, 2


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return open_bundle(ROOT / "models" / "reference")


def test_the_shipped_bundle_is_whole_and_small(shipped: Bundle) -> None:
    assert sum(path.stat().st_size for path in shipped.path.iterdir()) < 60_000_000
    assert tuple(label.name for label in shipped.manifest.labels) == LABELS


def test_the_shipped_bundle_is_the_one_its_configuration_describes(shipped: Bundle) -> None:
    config = read_config(ROOT / "conf" / "train" / "lite2-reference.toml")
    assert shipped.manifest.input == config.input.model_copy(update={"side": config.input.source_side})
    assert shipped.manifest.members == OWN_MEMBERS + OTHER_MEMBERS
    assert shipped.manifest.provenance.recipe == config.model_dump_json(exclude={"bundle", "input", "tracking"})


def test_abnormality_is_read_where_nine_in_ten_never_ill_are_spared(shipped: Bundle) -> None:
    points, default = shipped.manifest.labels[0].operating_points, shipped.manifest.default_operating_point
    assert points[default] == points["never_ill_90"]
    assert points["never_ill_90"].threshold > points["youden"].threshold


def test_the_shipped_gate_calls_images_unusual_before_it_rejects_them(shipped: Bundle) -> None:
    gate = shipped.manifest.gate
    assert gate.unusual_threshold is not None
    assert 0 < gate.unusual_threshold < gate.typicality_threshold


def test_every_shipped_label_states_its_base_rate(shipped: Bundle) -> None:
    assert all(label.prevalence is not None and 0 < label.prevalence < 1 for label in shipped.manifest.labels)


def test_the_shipped_card_states_the_figures_of_the_manifest(shipped: Bundle) -> None:
    card = (shipped.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    for label in shipped.manifest.labels:
        assert label.auc is not None
        assert label.auc_interval is not None
        low, high = label.auc_interval
        assert f"| {label.name} | {label.positives} | {label.auc:.3f} ({low:.3f}-{high:.3f}) |" in card


def test_the_shipped_curves_are_those_of_the_figures_beside_them(shipped: Bundle) -> None:
    for label in shipped.manifest.labels:
        assert label.curves is not None
        assert label.auc is not None
        assert label.scores is not None
        assert label.curves.images == sum(label.scores.counts)
        assert label.curves.roc.area == pytest.approx(label.auc, abs=0.001)
        points = list(zip(label.curves.roc.false_positive_rate, label.curves.roc.sensitivity, strict=True))
        for point in label.operating_points.values():
            away = [abs(1 - point.specificity - x) + abs(point.sensitivity - y) for x, y in points]
            assert min(away) < 2e-5
            assert point.sensitivity_interval is not None


def test_drawn_chests_pass_the_shipped_graph_as_they_did_when_it_was_made(shipped: Bundle) -> None:
    golden = shipped.golden()
    session = onnxruntime.InferenceSession(str(shipped.model_path), providers=["CPUExecutionProvider"])
    for name, value in zip(golden.outputs, session.run(list(golden.outputs), {"image": golden.image}), strict=True):
        assert np.allclose(value, golden.outputs[name], atol=1e-3)
