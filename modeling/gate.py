"""The pixel gate tells an upright frontal chest radiograph, like those of the training data, from anything else.

Its two answers come from a grid of cells: what is where (lungs dark on either side, bright between and below) tells a
frontal chest from anything else. What a cell holds are the frozen trunk's maps, which never saw a radiograph in
training, averaged; or, where a network has no frozen trunk, the image itself and its edges by direction.
"""

from dataclasses import dataclass

import cv2
import keras
import numpy as np
import numpy.typing as npt
from keras import ops
from sklearn.linear_model import LogisticRegression

from dicomnode.bundle.manifest import GateSpec, InputSpec
from dicomnode.bundle.preprocess import standardise
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.augment import PixelStore, augmented_inputs, network_inputs
from modeling.backbones.maps import Tensor
from modeling.config import AugmentSection, GateSection, TrainingConfig
from modeling.nih import Radiographs

TRUNK_GRID, IMAGE_GRID = 3, 8
"""Cells along a side, of trunk maps and of images."""
EDGE_SIDE = 64
"""Side of the image that edges are taken from: they do not depend on the network's own side."""
DIRECTIONS = 8
LEAST_EDGE = 1e-4
BATCH = 64
UPRIGHT = "upright"
TURNS = ("upright", "rot90", "rot180", "rot270")
ORIENTATIONS = (*TURNS, *(f"inverted-{turn}" for turn in TURNS))
"""Classes of the orientation output: rotN has been turned N degrees counter-clockwise, as by `numpy.rot90`."""

SAMPLES_PER_TURN = 0.25
LEAST_DEVIATION = 1e-3
RIDGE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutputs:
    """`typicality`: (N,) distance from the training data, higher is stranger. `orientation`: (N, 8) logits."""

    typicality: Tensor
    orientation: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A fitted gate over D cell features.

    `mean`: (D,). `axes`: (D, k) principal axes of the training features, `deviations`: (k,) along each of them.
    `residual_scale` multiplies the squared distance from the space that the axes span. `weights`: (D, 8).
    `bias`: (8,). A foreign vendor's look moves a chest off the axes, and other anatomy moves it along them, so the
    distance weighs the residual less than the sum of both would.
    """

    mean: FloatArray
    axes: FloatArray
    deviations: FloatArray
    residual_scale: float
    weights: FloatArray
    bias: FloatArray

    def outputs(self, maps: Tensor) -> GateOutputs:
        """Return the gate's outputs for trunk maps (N, h, w, C), or for images (N, side, side, 1)."""
        cells = cell_features(maps)
        centred = cells - self.mean
        along = ops.matmul(centred, self.axes)
        residual = ops.sum(ops.square(centred - ops.matmul(along, self.axes.T)), axis=1)
        distance = ops.mean(ops.square(along / self.deviations), axis=1)
        return GateOutputs(
            typicality=distance + self.residual_scale * residual,
            orientation=ops.matmul(cells, self.weights) + self.bias,
        )

    def typicality(self, cells: FloatArray) -> FloatArray:
        """Return (N,) typicality of (N, D) cell features."""
        centred = cells - self.mean
        along = centred @ self.axes
        residual = np.square(centred - along @ self.axes.T).sum(axis=1)
        distance = np.square(along / self.deviations).mean(axis=1)
        return np.asarray(distance + self.residual_scale * residual, dtype=np.float32)

    def orientation(self, cells: FloatArray) -> FloatArray:
        """Return (N, 8) orientation logits of (N, D) cell features."""
        return np.asarray(cells @ self.weights + self.bias, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSample:
    """Cell features of training images, (N, D) each, with the fold of every row.

    `plain` are upright as they are, `restyled` upright with another vendor's look; `turned` holds one array per
    orientation after the first, all of the same images, whose folds are `turned_folds`.
    """

    plain: FloatArray
    restyled: FloatArray
    folds: npt.NDArray[np.int64]
    turned: tuple[FloatArray, ...]
    turned_folds: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFit:
    """The gate, its thresholds, and how often it errs on training images of folds it was not fitted on.

    `gate` is None where another bundle's is taken over.

    `rejected`: upright images rejected, or taken for turned. `repaired`: per other orientation, the share that is
    certainly and rightly recognised. `unnoticed`: likewise, the share that passes as an upright chest. `sample_size`:
    upright images; `turned_size`: images of each other orientation.
    """

    gate: Gate | None
    spec: GateSpec
    rejected: float
    repaired: dict[str, float]
    unnoticed: dict[str, float]
    sample_size: int
    turned_size: int


def silent_gate(trunk: keras.Model | None, side: int) -> Gate:
    """Return a gate that calls every image typical and upright, for a graph whose gate output is not used."""
    image = np.zeros((1, side, side, 1), dtype=np.float32)
    size = _features(trunk, image).shape[1]
    return Gate(
        mean=np.zeros(size, dtype=np.float32),
        axes=np.zeros((size, 1), dtype=np.float32),
        deviations=np.ones(1, dtype=np.float32),
        residual_scale=0.0,
        weights=np.zeros((size, len(ORIENTATIONS)), dtype=np.float32),
        bias=np.zeros(len(ORIENTATIONS), dtype=np.float32),
    )


def fitted(fit: GateFit) -> Gate:
    """Return the gate of a fit of one's own.

    Raises: ConfigurationError when it is another bundle's.
    """
    if fit.gate is None:
        raise ConfigurationError("the gate is another bundle's: it cannot be written again")
    return fit.gate


def cell_features(maps: Tensor) -> Tensor:
    """Return what the gate reads: of trunk maps (N, h, w, C), or of images (N, side, side, 1), (N, D)."""
    if maps.shape[3] == 1:
        return _image_cells(maps[..., 0])
    cell = max(1, int(maps.shape[1]) // TRUNK_GRID)
    pooled = ops.average_pool(maps, cell, cell, "valid", data_format="channels_last")
    return ops.reshape(pooled, (-1, int(np.prod(pooled.shape[1:]))))


def _image_cells(images: Tensor) -> Tensor:
    """Return the cells of (N, side, side) images: edge strength by direction, its root taken, and brightness.

    The root keeps a vendor's contrast from outweighing where edges are and which way they run.
    Source: Dalal and Triggs, "Histograms of oriented gradients", CVPR 2005; without its normalisation by blocks.
    """
    small = _averaged(images, EDGE_SIDE)
    across = (small[:, 1:-1, 2:] - small[:, 1:-1, :-2]) / 2
    down = (small[:, 2:, 1:-1] - small[:, :-2, 1:-1]) / 2
    angles = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    edges = [ops.relu(float(np.cos(angle)) * across + float(np.sin(angle)) * down) for angle in angles]
    cells = [ops.sqrt(_averaged(edge, IMAGE_GRID) + LEAST_EDGE) for edge in edges]
    stacked = ops.stack([*cells, _averaged(images, IMAGE_GRID)], axis=-1)
    return ops.reshape(stacked, (-1, (DIRECTIONS + 1) * IMAGE_GRID**2))


def _averaged(images: Tensor, cells: int) -> Tensor:
    """Return (N, cells, cells) averages of (N, side, side) images over equal cells, which may cut through pixels."""
    side = int(images.shape[1])
    edges = np.linspace(0, side, cells + 1)
    starts, ends, pixel = edges[:-1, np.newaxis], edges[1:, np.newaxis], np.arange(side)
    covered = np.clip(np.minimum(ends, pixel + 1) - np.maximum(starts, pixel), 0, None)
    weights = (covered * cells / side).astype(np.float32)
    return ops.matmul(ops.matmul(weights, images), weights.T)


def sample_features(
    trunk: keras.Model | None, radiographs: Radiographs, folds: npt.NDArray[np.int64], config: TrainingConfig
) -> GateSample:
    """Draw training images and return their cell features, upright, restyled and turned."""
    random = np.random.default_rng((config.train.seed, 1))
    rows = random.permutation(len(folds))[: config.gate.images]
    turned_rows = rows[: max(config.train.folds, int(len(rows) * SAMPLES_PER_TURN))]
    pixels, side = radiographs.pixels, config.input.side
    turned = tuple(
        _features(trunk, network_inputs(turn_pixels(pixels[turned_rows], index, config.input), side))
        for index in range(1, len(ORIENTATIONS))
    )
    return GateSample(
        plain=_features(trunk, network_inputs(pixels[rows], side)),
        restyled=_restyled_features(trunk, pixels[rows], config, random),
        folds=folds[rows],
        turned=turned,
        turned_folds=folds[turned_rows],
    )


def fit_gate(sample: GateSample, settings: GateSection) -> GateFit:
    """Fit the gate on all of the sample; thresholds and error rates come from fits that leave one fold out."""
    arrays = (sample.plain, *sample.turned)
    folds = (sample.folds, *(sample.turned_folds for _ in sample.turned))
    typicality = [np.empty(len(cells), dtype=np.float32) for cells in arrays]
    orientation = [np.empty((len(cells), len(ORIENTATIONS))) for cells in arrays]
    for fold in np.unique(sample.folds):
        gate = _fit(sample, (sample.folds != fold, sample.turned_folds != fold), settings)
        for index, cells in enumerate(arrays):
            out = folds[index] == fold
            typicality[index][out] = gate.typicality(cells[out])
            orientation[index][out] = _softmax(gate.orientation(cells[out]))
    threshold = float(np.quantile(typicality[0], settings.quantile))
    passed = [(t <= threshold) & (p.argmax(axis=1) == 0) for t, p in zip(typicality, orientation, strict=True)]
    others = range(1, len(ORIENTATIONS))
    everyone = np.ones(len(sample.folds), dtype=bool), np.ones(len(sample.turned_folds), dtype=bool)
    return GateFit(
        gate=_fit(sample, everyone, settings),
        spec=GateSpec(
            typicality_threshold=threshold,
            unusual_threshold=min(threshold, float(np.quantile(typicality[0], 1 - settings.unusual))),
            orientations=ORIENTATIONS,
            certain=settings.certain,
        ),
        rejected=1 - float(passed[0].mean()),
        repaired={ORIENTATIONS[at]: float((orientation[at][:, at] >= settings.certain).mean()) for at in others},
        unnoticed={ORIENTATIONS[at]: float(passed[at].mean()) for at in others},
        sample_size=len(sample.folds),
        turned_size=len(sample.turned_folds),
    )


def turn_pixels(pixels: PixelStore, orientation: int, spec: InputSpec) -> PixelStore:
    """Return the images in the given orientation class, standardised again as serving would."""
    turns, inverted = orientation % len(TURNS), orientation >= len(TURNS)
    turned = np.rot90(255 - pixels if inverted else pixels, turns, axes=(1, 2))
    return np.stack([_standardised(image.astype(np.float32), spec) for image in turned])


def restyle(image: npt.NDArray[np.uint8], random: np.random.Generator) -> FloatArray:
    """Return the image as another vendor's post-processing might show it: local contrast raised; values 0 to 255."""
    if random.random() < 0.5:
        tiles = int(random.integers(2, 9))
        equalised = cv2.createCLAHE(random.uniform(1.0, 6.0), (tiles, tiles)).apply(image)
        return np.asarray(equalised, dtype=np.float32)
    pixels = image.astype(np.float32)
    blurred = cv2.GaussianBlur(pixels, (0, 0), random.uniform(1.5, 12.0))
    return np.asarray(np.clip(pixels + (pixels - blurred) * random.uniform(0.3, 2.5), 0, 255), dtype=np.float32)


def _fit(
    sample: GateSample, chosen: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]], settings: GateSection
) -> Gate:
    rows, turned_rows = chosen
    upright = np.concatenate([sample.plain[rows], sample.restyled[rows]])
    mean = upright.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(upright - mean, rowvar=False))
    split = max(1, len(variances) - settings.components)
    off_axis = float(np.maximum(variances[:split], LEAST_DEVIATION**2).sum())
    cells = np.concatenate([upright, *(turned[turned_rows] for turned in sample.turned)])
    classes = [np.zeros(len(upright), int)]
    classes += [np.full(int(turned_rows.sum()), at + 1) for at in range(len(sample.turned))]
    weights, bias = _fit_orientation(cells, np.concatenate(classes))
    return Gate(
        mean=mean.astype(np.float32),
        axes=directions[:, split:].astype(np.float32),
        deviations=np.sqrt(np.maximum(variances[split:], LEAST_DEVIATION**2)).astype(np.float32),
        residual_scale=settings.residual_weight / off_axis,
        weights=weights,
        bias=bias,
    )


def _fit_orientation(cells: FloatArray, classes: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Return (D, 8) weights and (8,) biases of a multinomial logistic regression."""
    mean, deviation = cells.mean(axis=0), cells.std(axis=0) + LEAST_DEVIATION
    model = LogisticRegression(C=RIDGE, max_iter=300, tol=1e-3).fit((cells - mean) / deviation, classes)
    weights = (model.coef_ / deviation).T
    return weights.astype(np.float32), (model.intercept_ - mean @ weights).astype(np.float32)


def _restyled_features(
    trunk: keras.Model | None, pixels: PixelStore, config: TrainingConfig, random: np.random.Generator
) -> FloatArray:
    styled = np.stack([_standardised(restyle(image, random), config.input) for image in pixels])
    settings: AugmentSection = config.augment
    return _features(trunk, augmented_inputs(styled, config.input.side, settings, random))


def _standardised(image: FloatArray, spec: InputSpec) -> npt.NDArray[np.uint8]:
    return np.asarray(np.rint(standardise(image / 255.0, spec) * 255.0), dtype=np.uint8)


def _features(trunk: keras.Model | None, images: FloatArray) -> FloatArray:
    batches = (images[at : at + BATCH] for at in range(0, len(images), BATCH))
    maps = (batch if trunk is None else trunk.predict_on_batch(batch) for batch in batches)
    return np.concatenate([ops.convert_to_numpy(cell_features(ops.convert_to_tensor(each))) for each in maps])


def _softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
