"""Frames to findings: one forward pass, calibration, operating points, the pixel gate."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dicomnode.bundle.reader import file_sha256, open_bundle
from dicomnode.domain.errors import BundleInvalid, ConfigurationError
from dicomnode.domain.finding import Presence, Score
from dicomnode.domain.frame import Frame
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.terminology import ABNORMALITY, NIH_TERMS
from dicomnode.inference.gate import Atypical, Doubtful, Turned, Typical, judge_pixels, repair
from dicomnode.inference.operating import choose_operating_point, findings_of, presence_of
from dicomnode.inference.predictor import Predictor, Reading, open_session
from tests.support.bundles import INTERCEPT, ORIENTATIONS, SLOPE, make_bundle

REF = InstanceRef(study="1.2.3", series="1.2.3.4", sop_class="1.2.840.10008.5.1.4.1.1.1", sop_instance="1.2.3.4.5")


def frame(seed: int = 1) -> Frame:
    pixels = np.random.default_rng(seed).random((90, 70), dtype=np.float32)
    pixels.setflags(write=False)
    return Frame(source=REF, pixels=pixels, spacing_mm=(0.2, 0.1))


def score(*members: float, probability: float) -> Score:
    return Score(
        label="Mass", probability=probability, member_probabilities=members, spread=float(np.std(np.asarray(members)))
    )


def test_one_pass_gives_every_label_a_score_and_a_map(tmp_path: Path) -> None:
    reading = Predictor(open_bundle(make_bundle(tmp_path)), threads=1).read(frame())
    assert [s.label for s in reading.scores] == [ABNORMALITY, *NIH_TERMS]
    assert [m.label for m in reading.saliency] == [ABNORMALITY, *NIH_TERMS]
    assert all(m.values.shape == (8, 8) and not m.values.flags.writeable for m in reading.saliency)
    assert float(np.sum(reading.orientation)) == pytest.approx(1.0)


def test_the_map_sums_to_the_logit_the_probability_comes_from(tmp_path: Path) -> None:
    reading = Predictor(open_bundle(make_bundle(tmp_path)), threads=1).read(frame())
    for one, saliency in zip(reading.scores, reading.saliency, strict=True):
        logit = np.log(one.probability / (1 - one.probability))
        assert float(np.sum(saliency.values)) == pytest.approx((logit - INTERCEPT) / SLOPE, abs=1e-4)


def test_results_are_not_planned_into_shared_memory_when_a_graph_is_loaded(tmp_path: Path) -> None:
    session = open_session(make_bundle(tmp_path) / "model.onnx", threads=1, providers=("cpu",))
    assert not session.get_session_options().enable_mem_reuse


def test_golden_vectors_are_replayed(tmp_path: Path) -> None:
    assert Predictor(open_bundle(make_bundle(tmp_path)), threads=1).replay_golden() < 1e-4


def test_a_model_that_misses_its_golden_outputs_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    other = make_bundle(tmp_path / "other", seed=8)
    (folder / "model.onnx").write_bytes((other / "model.onnx").read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = json.loads((other / "manifest.json").read_text())["files"]["model.onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    predictor = Predictor(open_bundle(folder), threads=1)
    with pytest.raises(BundleInvalid, match="golden"):
        predictor.replay_golden()


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / "MODEL_CARD.md").write_text("another card")
    with pytest.raises(BundleInvalid, match=r"MODEL_CARD\.md is not the file"):
        open_bundle(folder)


def test_an_unknown_manifest_key_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["treshold"] = 0.5
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleInvalid, match="treshold"):
        open_bundle(folder)


def test_a_file_outside_the_bundle_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleInvalid, match="outside the bundle"):
        open_bundle(folder)


def test_something_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / "model.onnx").write_bytes(b"not a graph")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = file_sha256(folder / "model.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    bundle = open_bundle(folder)
    with pytest.raises(BundleInvalid, match="not a graph"):
        Predictor(bundle, threads=1)


@pytest.mark.parametrize(
    ("members", "probability", "expected"),
    [
        ((0.9, 0.8, 0.9, 0.7, 0.8), 0.8, Presence.PRESENT),
        ((0.1, 0.2, 0.1, 0.2, 0.1), 0.1, Presence.ABSENT),
        ((0.9, 0.9, 0.1, 0.1, 0.8), 0.6, Presence.UNDETERMINED),
        ((0.52, 0.51, 0.49, 0.48, 0.51), 0.51, Presence.PRESENT),
        ((0.9, 0.9, 0.9, 0.9, 0.1), 0.8, Presence.PRESENT),
    ],
    ids=["agreed-present", "agreed-absent", "split", "split-but-close", "one-dissenter"],
)
def test_presence(members: tuple[float, ...], probability: float, expected: Presence) -> None:
    assert presence_of(score(*members, probability=probability), 0.5, 0.2) is expected


def test_findings_carry_their_operating_point_and_code(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path, threshold=0.3))
    reading = Predictor(bundle, threads=1).read(frame())
    findings = findings_of(reading.scores, bundle.manifest, choose_operating_point(bundle.manifest, None))
    assert [f.code for f in findings[1:]] == [term.code for term in NIH_TERMS.values()]
    assert {f.operating_point.threshold for f in findings} == {0.3}


def test_an_operating_point_the_bundle_lacks_is_named(tmp_path: Path) -> None:
    manifest = open_bundle(make_bundle(tmp_path)).manifest
    with pytest.raises(ConfigurationError, match="sensitivity_95, youden"):
        choose_operating_point(manifest, "best")


def reading(orientation: int, probability: float, typicality: float) -> Reading:
    values = np.full(len(ORIENTATIONS), (1 - probability) / (len(ORIENTATIONS) - 1))
    values[orientation] = probability
    return Reading(scores=(), saliency=(), typicality=typicality, orientation=values)


def test_the_gate_reads_the_bundles_thresholds(tmp_path: Path) -> None:
    spec = open_bundle(make_bundle(tmp_path)).manifest.gate
    assert judge_pixels(reading(0, 0.9, 0.5), spec) == Typical()
    assert judge_pixels(reading(0, 0.9, 1.5), spec) == Atypical(typicality=1.5, threshold=1.0)
    assert judge_pixels(reading(1, 0.99, 1.5), spec) == Turned(quarter_turns=3, invert=False)
    assert judge_pixels(reading(4, 0.99, 0.5), spec) == Turned(quarter_turns=0, invert=True)
    assert judge_pixels(reading(2, 0.9, 0.5), spec) == Doubtful(probability=0.9)


@pytest.mark.parametrize(("turned", "inverted"), [(t, i) for t in range(4) for i in (False, True) if t or i])
def test_a_repair_gives_back_the_upright_image(turned: int, inverted: bool, tmp_path: Path) -> None:
    spec = open_bundle(make_bundle(tmp_path)).manifest.gate
    upright = frame()
    wrong = np.rot90(upright.pixels, turned)
    wrong = 1.0 - wrong if inverted else wrong
    index = ORIENTATIONS.index(("inverted-" if inverted else "") + ("upright", "rot90", "rot180", "rot270")[turned])
    verdict = judge_pixels(reading(index, 0.999, 9.0), spec)
    assert isinstance(verdict, Turned)
    spacing = (0.1, 0.2) if turned % 2 else (0.2, 0.1)
    righted = repair(Frame(source=REF, pixels=np.ascontiguousarray(wrong), spacing_mm=spacing), verdict)
    np.testing.assert_allclose(righted.pixels, upright.pixels, atol=1e-6)
    assert righted.spacing_mm == (0.2, 0.1)
    assert righted.inverted_from_source is inverted


def test_a_graph_of_other_members_or_labels_than_the_manifest_is_refused_though_its_golden_agree(
    tmp_path: Path,
) -> None:
    folder = make_bundle(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["members"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleInvalid, match=r"'logits' has the shape \(2, \d, 15\), not \(2, \d, 15\)"):
        Predictor(open_bundle(folder), threads=1).replay_golden()


@pytest.mark.parametrize(("name", "package"), [("cuda", "onnxruntime-gpu"), ("openvino", "onnxruntime-openvino")])
def test_a_provider_that_the_runtime_lacks_is_named_with_the_package_that_has_it(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    bundle = open_bundle(make_bundle(tmp_path))
    with pytest.raises(ConfigurationError, match=f"no {name}, only cpu; install {package} in its place"):
        Predictor(bundle, threads=1, providers=(name,))


@pytest.mark.parametrize("name", ["cuda", "openvino"])
def test_a_provider_that_the_runtime_has_gives_the_golden_vectors_or_says_that_it_cannot_start(
    name: str, tmp_path: Path
) -> None:
    full = {"cuda": "CUDAExecutionProvider", "openvino": "OpenVINOExecutionProvider"}[name]
    if full not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {name}")
    try:
        predictor = Predictor(open_bundle(make_bundle(tmp_path)), threads=1, providers=(name, "cpu"))
    except ConfigurationError as error:
        assert "cannot be started" in str(error)  # noqa: PT017 where the machine has no such device
    else:
        assert predictor.replay_golden() < 1e-3


def test_a_provider_that_the_runtime_leaves_out_silently_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bundle = onnxruntime.InferenceSession, open_bundle(make_bundle(tmp_path))
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, providers: real(*args, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(ConfigurationError, match="cuda cannot be started"):
        Predictor(bundle, threads=1, providers=("cuda", "cpu"))
