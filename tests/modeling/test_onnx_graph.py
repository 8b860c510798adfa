"""The graph that is served computes what Keras does, and its maps are Grad-CAM, for every family of backbones."""

from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from pydantic import TypeAdapter

from dicomnode.bundle.phantom import draw_chest
from dicomnode.domain.errors import CxrNodeError
from modeling.backbones.build import Parts, build_parts
from modeling.backbones.maps import ensemble_logits_and_maps
from modeling.backbones.parts import PositionPooling
from modeling.config import ModelSection
from modeling.gate import Gate, cell_features
from modeling.onnx_graph import Ensemble, measure_parity, run_graph, served_member, served_trunk, write_graph

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

SIDE, OUTPUTS = 64, 3
FAMILIES = ("efficientnet-lite0", "frozen", "pyramid", "baseline-cnn", "resnet56v2", "efficientnet-b0",
            "efficientnet-v2-b0", "densenet121", "resnet50v2", "mobilenet")  # fmt: skip


def section(name: str) -> ModelSection:
    extra: dict[str, object] = {"weights": "random"}
    if name in ("efficientnet-lite0", "frozen"):
        name, extra = "efficientnet-lite0", {"frozen_blocks": 4 if name == "frozen" else 0}
    if name == "pyramid":
        name, extra = "efficientnet-lite2", {"frozen_blocks": 2, "read_out": "pyramid", "stochastic_depth": 0.1}
    if name in ("baseline-cnn", "resnet56v2"):
        extra = {}
    return TypeAdapter(ModelSection).validate_python({"backbone": name, **extra})


def drawn(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.stack([draw_chest(SIDE, SIDE, random) for _ in range(count)])[..., np.newaxis]


def unlike_at_birth(head: keras.Model, random: np.random.Generator) -> None:
    """Give batch norm and biases values that a fault in folding or ordering would mix up."""
    for variable in head.variables:
        value = keras.ops.convert_to_numpy(variable)
        if "variance" in variable.path or "gamma" in variable.path:
            variable.assign(random.uniform(0.8, 1.2, value.shape))
        elif value.ndim == 1 and value.dtype == np.float32:
            variable.assign(random.normal(0, 0.1, value.shape))
        elif "logits" in variable.path or "place" in variable.path:
            variable.assign(random.normal(0, 1, value.shape))


def make(name: str, members: int) -> tuple[Parts, Ensemble]:
    """Return a network and the ensemble of its states at several moments."""
    keras.utils.set_random_seed(0)
    model, random, heads = section(name), np.random.default_rng(0), []
    parts = build_parts(model, SIDE, OUTPUTS)
    for _ in range(members):
        unlike_at_birth(parts.head, random)
        heads.append(served_member(parts.head, model, SIDE))
    trunk = served_trunk(parts.trunk)
    read = drawn(1) if trunk is None else trunk(drawn(1))
    gate_trunk = served_trunk(parts.gate_trunk)
    assert (gate_trunk is not None) == (name == "pyramid"), "where fewer than four blocks are frozen"
    read = read if gate_trunk is None else gate_trunk(read)
    gate = make_gate(cell_features(tf.convert_to_tensor(read)).shape[1], random)
    return parts, Ensemble(side=SIDE, trunk=trunk, members=tuple(heads), gate=gate, gate_trunk=gate_trunk)


def make_gate(features: int, random: np.random.Generator) -> Gate:
    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.1, shape).astype(np.float32)

    return Gate(
        mean=normal(features), axes=normal(features, 4), deviations=np.ones(4, np.float32), residual_scale=0.5,
        weights=normal(features, 8), bias=normal(8),
    )  # fmt: skip


def features_of(ensemble: Ensemble) -> tf.Tensor:
    images = tf.constant(drawn(2))
    return images if ensemble.trunk is None else ensemble.trunk(images)


def grad_cam(heads: tuple[keras.Model, ...], inputs: tf.Tensor, output: int) -> np.ndarray:
    """Return the mean over members of Selvaraju's map before its ReLU: mean gradient per channel times the map.

    Where positions have weights of their own the gradient of each is taken, not the mean (HiResCAM).
    """
    maps = []
    for head in heads:
        both = keras.Model(head.input, [head.get_layer("last_map").output, head.output])
        with tf.GradientTape() as tape:
            last, logits = both(inputs, training=False)
            tape.watch(last)
            wanted = keras.Sequential(head.layers[-3:])(last)[:, output]
        assert np.allclose(wanted, logits[:, output], rtol=1e-4, atol=1e-4)
        weights = tape.gradient(wanted, last)
        if not isinstance(head.get_layer("pooled"), PositionPooling):
            weights = tf.reduce_mean(weights, axis=(1, 2), keepdims=True)
        maps.append(tf.reduce_sum(weights * last, axis=3).numpy())
    return np.mean(maps, axis=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_served_graph_computes_what_keras_does(name: str, tmp_path: Path) -> None:
    parts, ensemble = make(name, 2 if name in ("frozen", "baseline-cnn") else 1)
    path, images = tmp_path / "model.onnx", drawn(3)
    write_graph(ensemble, path)
    assert [entry.name for entry in onnx.load(path).graph.input] == ["image"]
    assert measure_parity(ensemble, path, images) <= 1e-5
    # The last member is the head as it stands, but for the rounding of its weights.
    inputs = images if parts.trunk is None else parts.trunk(images)
    trained = keras.ops.convert_to_numpy(parts.head(inputs, training=False))
    assert np.abs(run_graph(path, images)["logits"][:, -1] - trained).max() <= 2e-2 * np.abs(trained).max()


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_the_grad_cam_of_the_mean_logit(name: str) -> None:
    ensemble = make(name, 2 if name in ("frozen", "mobilenet") else 1)[1]
    inputs = features_of(ensemble)
    logits, maps = ensemble_logits_and_maps(ensemble.members, inputs)
    for output in range(OUTPUTS):
        expected = grad_cam(ensemble.members, inputs, output)
        assert np.abs(maps[..., output] - expected).max() <= 1e-5 * np.abs(expected).max()
    bias = np.mean([head.get_layer("logits").get_weights()[1] for head in ensemble.members], axis=0)
    total = np.asarray(maps).sum(axis=(1, 2)) + bias
    assert np.allclose(total, np.asarray(logits).mean(axis=1), rtol=1e-4, atol=1e-4)


def test_zero_padding_before_a_maximum_stays_zero(tmp_path: Path) -> None:
    image = keras.Input((SIDE, SIDE, 1))
    padded = keras.layers.ZeroPadding2D(1)(keras.layers.Rescaling(1.0, -2.0)(image))
    last = keras.layers.Identity(name="last_map")(keras.layers.MaxPooling2D(3, 2)(padded))
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(last)
    head = keras.Model(image, keras.layers.Dense(OUTPUTS, name="logits")(pooled))
    gate = make_gate(cell_features(tf.constant(drawn(1))).shape[1], np.random.default_rng(0))
    ensemble = Ensemble(side=SIDE, trunk=None, members=(head,), gate=gate)
    write_graph(ensemble, tmp_path / "model.onnx")
    assert measure_parity(ensemble, tmp_path / "model.onnx", drawn(2)) <= 1e-5


def test_a_graph_of_other_weights_is_refused(tmp_path: Path) -> None:
    write_graph(make("baseline-cnn", 1)[1], tmp_path / "model.onnx")
    with pytest.raises(CxrNodeError, match="differs from Keras"):
        measure_parity(make("baseline-cnn", 2)[1], tmp_path / "model.onnx", drawn(2))


def test_a_head_trained_in_half_precision_is_served_in_single() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        member = make("frozen", 1)[1].members[0]
    finally:
        keras.config.set_dtype_policy("float32")
    computing = [layer for layer in member.layers if not isinstance(layer, keras.layers.InputLayer)]
    assert {layer.compute_dtype for layer in computing} == {"float32"}


def test_large_weights_are_stored_in_half_precision(tmp_path: Path) -> None:
    ensemble = make("baseline-cnn", 1)[1]
    write_graph(ensemble, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 2.4 * ensemble.members[0].count_params()
