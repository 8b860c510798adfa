"""Every backbone builds, ends as serving needs it, and learns what the configuration lets it learn."""

from itertools import pairwise
from typing import get_args

import keras
import numpy as np
import pytest
from pydantic import TypeAdapter

from dicomnode.domain.errors import ConfigurationError
from modeling.backbones.applications import APPLICATIONS, build_application
from modeling.backbones.build import Parts, build_parts
from modeling.backbones.small import build_cnn, build_resnet
from modeling.config import ApplicationModel, LiteModel, ModelSection, SmallModel

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

APPLICATION_NAMES = get_args(ApplicationModel.model_fields["backbone"].annotation)
SMALL_NAMES = get_args(SmallModel.model_fields["backbone"].annotation)
LARGE = ("efficientnet-b3", "efficientnet-b4", "efficientnet-b5", "efficientnet-b6", "efficientnet-b7",
         "efficientnet-v2-b1", "efficientnet-v2-b2", "efficientnet-v2-b3", "efficientnet-v2-m",
         "efficientnet-v2-l")  # fmt: skip
"""They repeat the blocks of smaller ones that do run; only their constructors are called, on shapes alone."""
SIDE = 32


def section(name: str) -> ModelSection:
    """Return the model section of a backbone at random weights with nothing frozen."""
    extra = {"weights": "random"} if name in APPLICATION_NAMES else {}
    extra |= {"frozen_blocks": 0} if name == "efficientnet-lite0" else {}
    return TypeAdapter(ModelSection).validate_python({"backbone": name, **extra})


def ends_as_promised(parts: Parts, outputs: int) -> None:
    head = parts.head
    names = [layer.name for layer in head.layers]
    assert names[-4:] == ["last_map", "pooled", "dropout", "logits"]
    last, logits = head.get_layer("last_map"), head.get_layer("logits")
    assert len(last.output.shape) == 4
    assert isinstance(head.get_layer("pooled"), keras.layers.GlobalAveragePooling2D)
    assert logits.activation is keras.activations.linear
    assert logits.kernel.shape == (last.output.shape[-1], outputs)
    assert head.output.shape == (None, outputs)
    # What a network's stock constructor puts before its first layer depends on the weights and is not exported.
    assert sum(isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)) for layer in head.layers) == 1


@pytest.mark.parametrize("name", ["efficientnet-lite0", *SMALL_NAMES, *set(APPLICATION_NAMES) - set(LARGE)])
def test_every_backbone_reads_an_image(name: str) -> None:
    parts = build_parts(section(name), SIDE, 3)
    ends_as_promised(parts, 3)
    images = np.random.default_rng(0).random((2, SIDE, SIDE, 1), dtype=np.float32)
    logits = keras.ops.convert_to_numpy(parts.head(images))
    assert logits.shape == (2, 3)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert not np.array_equal(logits[0], logits[1])


@pytest.mark.parametrize("name", LARGE)
def test_every_large_backbone_builds(name: str) -> None:
    # Drawing the random weights of 200 million parameters is what takes long.
    with keras.StatelessScope():
        ends_as_promised(build_parts(section(name), SIDE, 15), 15)


def test_every_application_of_the_configuration_is_known() -> None:
    assert set(APPLICATIONS) == set(APPLICATION_NAMES)


def test_the_baseline_has_the_parameters_of_the_study() -> None:
    head = build_cnn(128, 14, 0.0)
    assert head.count_params() - head.get_layer("logits").count_params() == 369_408


def test_resnet_has_the_parameters_of_the_paper_s_example() -> None:
    # Keras' CIFAR-10 example, ResNet-20 v2, has 574,090; its first 3 x 3 x 16 kernel sees two channels more.
    assert build_resnet(32, 10, 0.0, units=2).count_params() == 574_090 - 2 * 3 * 3 * 16


def test_resnet_56_has_56_layers_on_its_longest_path() -> None:
    head = build_resnet(32, 10, 0.0)
    shortcuts = 3
    convolutions = sum(isinstance(layer, keras.layers.Conv2D) for layer in head.layers)
    assert convolutions - shortcuts + 1 == 56


@pytest.mark.parametrize("frozen", [0, 4])
def test_lite0_shares_what_is_frozen(frozen: int) -> None:
    parts = build_parts(LiteModel(backbone="efficientnet-lite0", frozen_blocks=frozen, dropout=0.25), 64, 5)
    assert (parts.trunk is None) == (frozen == 0)
    if parts.trunk is not None:
        assert parts.trunk.output.shape == parts.head.input.shape
    assert parts.head.get_layer("dropout").rate == 0.25


def test_only_the_last_layers_learn_where_the_configuration_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    known = APPLICATIONS["mobilenet"]
    offline = {"constructor": lambda weights, **options: known.constructor(weights=None, **options)}
    monkeypatch.setitem(APPLICATIONS, "mobilenet", type(known)(scaling=known.scaling, **offline))
    model = ApplicationModel(backbone="mobilenet", weights="imagenet", trainable_fraction=0.25)
    head = build_application(model, SIDE, 3)
    backbone = head.layers[3:-4]
    learns = [layer.trainable for layer in backbone]
    assert sum(learns) == round(0.25 * len(backbone))
    assert all(first <= second for first, second in pairwise(learns))
    assert all(layer.trainable for layer in head.layers[-4:])
    norms = [layer for layer in backbone if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.get_weights()[2] for layer in norms]
    head(np.random.default_rng(0).random((2, SIDE, SIDE, 1), dtype=np.float32), training=True)
    moved = [not np.array_equal(layer.get_weights()[2], was) for layer, was in zip(norms, before, strict=True)]
    assert moved == [layer.trainable for layer in norms]


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [
        ("efficientnet-b0", (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), (0.515 / 0.229, 0.544 / 0.224, 2.64)),
        ("efficientnet-v2-b0", (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), (0.515 / 0.229, 0.544 / 0.224, 2.64)),
        ("efficientnet-v2-s", (-1.0, -1.0, -1.0), (127 / 128, 127 / 128, 127 / 128)),
        ("densenet121", (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), (0.515 / 0.229, 0.544 / 0.224, 2.64)),
        ("resnet50v2", (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)),
        ("mobilenet", (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)),
    ],
)
def test_images_are_scaled_as_the_network_s_imagenet_weights_expect(
    name: str, black: tuple[float, ...], white: tuple[float, ...]
) -> None:
    head = build_parts(section(name), SIDE, 3).head
    scaled = keras.Model(head.input, head.get_layer("rescale").output)
    for value, expected in ((0.0, black), (1.0, white)):
        seen = keras.ops.convert_to_numpy(scaled(np.full((1, SIDE, SIDE, 1), value, dtype=np.float32)))
        assert np.allclose(seen[0, 5, 5], expected, atol=1e-4)


def test_imagenet_weights_change_the_weights_and_not_the_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    known, loaded = APPLICATIONS["efficientnet-b0"], []

    def fetched(weights: str, **options: object) -> keras.Model:
        # Keras inserts a further Rescaling with weights="imagenet"; here it is inserted without the download.
        monkeypatch.setattr(keras.Model, "load_weights", lambda *_: None)
        monkeypatch.setattr("keras.src.applications.efficientnet.file_utils.get_file", lambda *_, **__: "none")
        stock = known.constructor(weights=weights, **options)
        loaded.append(stock.get_layer("stem_conv").get_weights()[0])
        assert sum(isinstance(layer, keras.layers.Rescaling) for layer in stock.layers) == 3
        return stock

    monkeypatch.setitem(APPLICATIONS, "efficientnet-b0", type(known)(scaling=known.scaling, constructor=fetched))
    model = ApplicationModel(backbone="efficientnet-b0", weights="imagenet")
    head = build_application(model, SIDE, 3)
    ends_as_promised(Parts(trunk=None, head=head), 3)
    assert np.array_equal(head.get_layer("stem_conv").get_weights()[0], loaded[0])


def test_weights_that_cannot_be_fetched_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    # Nothing listens on the discard port, and nothing is cached in an empty folder.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path))
    model = ApplicationModel(backbone="mobilenet", weights="imagenet")
    with pytest.raises(ConfigurationError, match=r"ImageNet weights of mobilenet cannot be fetched \(.+\)"):
        build_parts(model, SIDE, 3)


def test_logits_stay_exact_under_a_mixed_policy() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        head = build_parts(section("mobilenet"), SIDE, 3).head
    finally:
        keras.config.set_dtype_policy("float32")
    assert head.get_layer("conv1").compute_dtype == "bfloat16"
    assert {head.get_layer(name).compute_dtype for name in ("rescale", "last_map", "pooled", "logits")} == {"float32"}
    assert head(np.zeros((1, SIDE, SIDE, 1), dtype=np.float32)).dtype == "float32"
