from pathlib import Path
from typing import Literal

import keras
import numpy as np
import pytest

from dicomnode.domain.errors import ConfigurationError
from modeling.backbones.build import Parts, build_parts
from modeling.backbones.lite import blocks_behind, build_head, fold_normalisation, unfold_normalisation, warm_start
from modeling.config import LiteModel

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]


LITE0 = LiteModel(backbone="efficientnet-lite0", frozen_blocks=4)
PYRAMID = LiteModel(backbone="efficientnet-lite0", frozen_blocks=4, read_out="pyramid", stochastic_depth=0.2)
UNFROZEN = LiteModel(backbone="efficientnet-lite0", frozen_blocks=0)


@pytest.fixture(scope="module")
def folded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a warm start of random weights in the layout of the real one."""
    keras.utils.set_random_seed(0)
    whole = build_head(UNFROZEN, 64, 15, normalised=False)
    random, arrays = np.random.default_rng(0), {}
    convolutions = [layer for layer in whole.layers if layer.name.startswith("conv")]
    for index, layer in enumerate(convolutions):
        kind = "DEPTHWISE_CONV_2D" if isinstance(layer, keras.layers.DepthwiseConv2D) else "CONV_2D"
        kernel, bias = layer.get_weights()
        arrays[f"{index:02d}_{kind}_w"] = kernel
        arrays[f"{index:02d}_{kind}_b"] = random.normal(0, 0.1, bias.shape).astype(np.float32)
    path = tmp_path_factory.mktemp("warm") / "folded.npz"
    np.savez(path, **arrays)
    return path


def frozen_features(parts: Parts, images: np.ndarray) -> np.ndarray:
    assert parts.trunk is not None
    return parts.trunk.predict_on_batch(images)


def test_unfolding_normalises_without_changing_the_output(folded_file: Path) -> None:
    parts = build_parts(LITE0, 64, 15)
    warm_start(parts, LITE0, folded_file)
    images = np.random.default_rng(1).random((8, 64, 64, 1), dtype=np.float32)
    features = frozen_features(parts, images)
    before = parts.head.predict_on_batch(features)
    unfold_normalisation(parts.head, features)
    assert np.abs(parts.head.predict_on_batch(features) - before).max() <= 1e-4 * np.abs(before).max()
    mean, variance = parts.head.get_layer("norm24").get_weights()[2:]
    assert np.abs(mean).max() > 0
    assert not np.allclose(variance, 1.0)


def test_folding_for_export_computes_the_same(folded_file: Path) -> None:
    parts = build_parts(LITE0, 64, 15)
    warm_start(parts, LITE0, folded_file)
    features = frozen_features(parts, np.random.default_rng(1).random((8, 64, 64, 1), dtype=np.float32))
    unfold_normalisation(parts.head, features)
    served = build_head(LITE0, 64, 15, normalised=False)
    fold_normalisation(parts.head, served)
    expected = parts.head.predict_on_batch(features)
    assert np.abs(served.predict_on_batch(features) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_freezing_blocks_does_not_change_what_a_warm_start_computes(folded_file: Path) -> None:
    parts = build_parts(LITE0, 64, 15)
    warm_start(parts, LITE0, folded_file)
    whole = build_parts(UNFROZEN, 64, 15)
    assert whole.trunk is None
    warm_start(whole, UNFROZEN, folded_file)
    whole.head.get_layer("logits").set_weights(parts.head.get_layer("logits").get_weights())
    images = np.random.default_rng(1).random((4, 64, 64, 1), dtype=np.float32)
    expected = parts.head.predict_on_batch(frozen_features(parts, images))
    assert np.abs(whole.head.predict_on_batch(images) - expected).max() <= 1e-4 * np.abs(expected).max()
    unfold_normalisation(whole.head, images)
    assert np.abs(whole.head.predict_on_batch(images) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_pyramid_is_silent_at_a_warm_start_and_folds_like_the_rest(folded_file: Path) -> None:
    keras.utils.set_random_seed(1)
    parts, plain = build_parts(PYRAMID, 64, 3), build_parts(LITE0, 64, 3)
    for built, model in ((parts, PYRAMID), (plain, LITE0)):
        warm_start(built, model, folded_file)
    images = np.random.default_rng(1).random((8, 64, 64, 1), dtype=np.float32)
    features = frozen_features(parts, images)
    unfold_normalisation(parts.head, features)
    coarse = keras.Model(plain.head.input, plain.head.get_layer("last_map").output).predict_on_batch(features)
    fine = keras.Model(parts.head.input, parts.head.get_layer("last_map").output).predict_on_batch(features)
    assert fine.shape[1:3] == (4, 4) != coarse.shape[1:3]
    assert np.allclose(fine.mean(axis=(1, 2)), coarse.mean(axis=(1, 2)), atol=0.05 * coarse.max())
    random = np.random.default_rng(2)
    for name in ("norm49", "pooled", "logits"):
        layer = parts.head.get_layer(name)
        layer.set_weights([value + random.uniform(0.2, 1, value.shape) for value in layer.get_weights()])
    served = build_head(PYRAMID, 64, 3, normalised=False)
    fold_normalisation(parts.head, served)
    expected = parts.head.predict_on_batch(features)
    assert np.abs(served.predict_on_batch(features) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_blocks_are_counted_from_the_end() -> None:
    head = build_head(UNFROZEN, 64, 3)
    behind = blocks_behind(head, UNFROZEN)
    assert {behind[f"conv{index:02d}/kernel"] for index in (45, 46, 47)} == {1}
    assert behind["norm44/gamma"] == 2
    assert behind["conv00/kernel"] == 8
    assert not {"conv48/kernel", "logits/kernel"} & set(behind)


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", kernel=np.zeros(3))
    parts = build_parts(LITE0, 64, 15)
    with pytest.raises(ConfigurationError, match="49 kernels and biases"):
        warm_start(parts, LITE0, tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("efficientnet-lite0", "efficientnet_lite0_imagenet_folded.npz"),
        ("efficientnet-lite2", "efficientnet_lite2_imagenet_float_folded.npz"),
    ],
)
def test_the_real_warm_starts_fit(backbone: Literal["efficientnet-lite0"], name: str, shared_data: Path) -> None:
    model = LiteModel(backbone=backbone, frozen_blocks=4)
    parts = build_parts(model, 64, 15)
    warm_start(parts, model, shared_data / "weights" / name)
    pooled = keras.Model(parts.head.input, parts.head.get_layer("pooled").output)
    features = frozen_features(parts, np.random.default_rng(1).random((2, 64, 64, 1), dtype=np.float32))
    assert 0.05 < float(np.mean(pooled.predict_on_batch(features))) < 2.0
