"""From stored pixels to network inputs: exact for evaluation, randomly changed for training."""

import cv2
import numpy as np
import numpy.typing as npt

from dicomnode.domain.frame import FloatArray
from modeling.config import AugmentSection

PixelStore = npt.NDArray[np.uint8]
"""(N, s, s) uint8: standardised images (see `dicomnode.bundle.preprocess`) at source resolution, times 255."""

_BORDERS = {"black": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101, "edge": cv2.BORDER_REPLICATE}
_LEAST_ZOOM = 0.2
_GREY = np.arange(256, dtype=np.float32) / 255.0


def network_inputs(images: PixelStore, side: int) -> FloatArray:
    """Return (N, side, side, 1) float32 in [0, 1], enlarged as `dicomnode.bundle.preprocess` does."""
    out = np.empty((len(images), side, side, 1), dtype=np.float32)
    for index, stored in enumerate(images):
        image = stored.astype(np.float32) / 255.0
        if image.shape != (side, side):
            image = np.clip(cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC), 0.0, 1.0)
        out[index, ..., 0] = image
    return out


def augmented_inputs(
    images: PixelStore, side: int, settings: AugmentSection, random: np.random.Generator
) -> FloatArray:
    """Return (N, side, side, 1) float32 in [0, 1]: each image moved, and its grey scale changed, at random."""
    out = np.empty((len(images), side, side, 1), dtype=np.float32)
    for index, stored in enumerate(images):
        out[index, ..., 0] = augmented_input(stored, side, settings, random)
    return out


def augmented_input(
    stored: npt.NDArray[np.uint8], side: int, settings: AugmentSection, random: np.random.Generator
) -> FloatArray:
    """Return one (side, side) image in [0, 1], changed at random; every call draws anew."""
    image = _half_resolution(stored) if random.random() < settings.blur else stored
    if settings.least_resolution < 1:
        image = _reduced_resolution(image, random.uniform(settings.least_resolution, 1.0))
    # The grey scale is changed through a table of the 256 stored values, before the image is enlarged: ten times faster
    # than powers of every pixel of the result.
    changed = _random_grey_scale(_GREY, settings, random)[image]
    if settings.noise:
        changed += settings.noise * random.standard_normal(changed.shape, dtype=np.float32)
    matrix = _random_affine(image.shape[0], side, settings, random)
    moved = cv2.warpAffine(changed, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=_BORDERS[settings.border])
    np.clip(moved, 0.0, 1.0, out=moved)
    if settings.erase:
        _blank(moved, settings.erase, random)
    return np.asarray(moved, dtype=np.float32)


def _blank(image: FloatArray, largest: float, random: np.random.Generator) -> None:
    """Fill a rectangle at random with one grey value. Source: Zhong et al., "Random erasing", AAAI 2020."""
    side = image.shape[0]
    height, width = (int(side * share) for share in random.uniform(0.0, largest, 2))
    top, left = random.integers(0, side - height + 1), random.integers(0, side - width + 1)
    image[top : top + height, left : left + width] = random.random()


def _reduced_resolution(image: npt.NDArray[np.uint8], share: float) -> npt.NDArray[np.uint8]:
    """Return the image reduced to this share of its side and enlarged again."""
    side = image.shape[0]
    small = cv2.resize(image, (max(1, round(side * share)),) * 2, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _half_resolution(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    side = image.shape[0]
    small = cv2.resize(image, (side // 2, side // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _random_affine(source_side: int, side: int, settings: AugmentSection, random: np.random.Generator) -> FloatArray:
    """Return the (2, 3) matrix from source to network pixels: mirror, shear, rotation, zoom about the centre, shift."""
    angle = np.deg2rad(_drawn(settings.rotation_degrees, settings, random))
    # A normal draw of the zoom has no bound; what it may not do is turn the image inside out.
    scale = max(_LEAST_ZOOM, 1 + _drawn(settings.zoom, settings, random)) * side / source_side
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slope = np.tan(np.deg2rad(_drawn(settings.shear_degrees, settings, random)))
    mirror = -1.0 if settings.flip and random.random() < settings.flip else 1.0
    linear = turn @ np.array([[1.0, slope], [0.0, 1.0]]) @ np.diag([mirror, 1.0])
    shift = np.array([_drawn(settings.shift, settings, random) for _ in range(2)]) * side
    # Pixel centres are at integers, so the middle of an image of side n is (n - 1) / 2.
    offset = (side - 1) / 2 + shift - linear @ np.full(2, (source_side - 1) / 2)
    return np.concatenate([linear, offset[:, None]], axis=1).astype(np.float32)


def _drawn(size: float, settings: AugmentSection, random: np.random.Generator) -> float:
    """Return a change around 0: uniform within `size` either way, or normal with that deviation."""
    if not size:
        return 0.0
    return random.normal(0.0, size) if settings.draw == "normal" else random.uniform(-size, size)


def _random_grey_scale(image: FloatArray, settings: AugmentSection, random: np.random.Generator) -> FloatArray:
    contrast = random.uniform(1 - settings.contrast, 1 + settings.contrast)
    brightness = random.uniform(-settings.brightness, settings.brightness)
    exponent = np.exp(random.uniform(-settings.gamma, settings.gamma))
    changed = np.clip(0.5 + (image - 0.5) * contrast + brightness, 0.0, 1.0)
    return np.asarray(np.power(changed, exponent), dtype=np.float32)
