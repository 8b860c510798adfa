"""Digests of a bundle's training images, by which an evaluation recognises them, and the fingerprint of its model.

`training-images.npz` in a bundle holds two sorted arrays, `names` and `pixels`, (N,) uint64 each: the first 8 bytes of
SHA-256 of an image's name, without folder and suffix, and of its standardised pixels at the source side. The name finds
an image again at another resolution; the pixels find it under another name. Bundles without the file stay readable.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.bundle.reader import GOLDEN, Bundle
from dicomnode.domain.errors import BundleInvalid
from modeling.augment import PixelStore
from modeling.files import decoded
from modeling.pixel_store import standardised
from modeling.preparation.tables import image_key

TRAINING_IMAGES = "training-images.npz"
FINGERPRINT_TOLERANCE = 1e-3
"""Largest difference of a logit of the same weights: exported again, a graph has other bytes and rounds otherwise."""
Recogniser = Callable[[str, bytes], bool]
"""Takes an image's name and its file's bytes, and tells whether the bundle was trained on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingImages:
    """Digests of the images that a bundle was trained on."""

    names: frozenset[int]
    pixels: frozenset[int]


def fingerprint_of(folder: Path) -> list[float]:
    """Return the logits of a bundle's first golden image: they identify its weights, which the file's hash does not.

    Raises: BundleInvalid.
    """
    path = folder / GOLDEN
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [round(float(value), 5) for value in arrays["logits"][0].ravel()]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise BundleInvalid(f"{path} cannot be read") from error


def is_same_model(first: Sequence[float], second: Sequence[float]) -> bool:
    """Tell whether two fingerprints are of the same weights."""
    return len(first) == len(second) and bool(np.allclose(first, second, rtol=0, atol=FINGERPRINT_TOLERANCE))


def write_training_images(path: Path, names: Iterable[str], pixels: PixelStore) -> None:
    """Write the digests of images, (N,) names and (N, s, s) standardised pixels."""
    by_name = np.array(sorted(_name_digest(name) for name in names), dtype=np.uint64)
    by_pixels = np.array(sorted(_pixel_digest(image) for image in pixels), dtype=np.uint64)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, names=by_name, pixels=by_pixels)


def read_training_images(bundle: Bundle) -> TrainingImages | None:
    """Return the digests of a bundle, None when it has none.

    Raises: BundleInvalid when the file cannot be read.
    """
    if TRAINING_IMAGES not in bundle.manifest.files:
        return None
    path = bundle.path / TRAINING_IMAGES
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, pixels = (frozenset(arrays[name].tolist()) for name in ("names", "pixels"))
    except (OSError, ValueError, KeyError) as error:
        raise BundleInvalid(f"{path} cannot be read") from error
    return TrainingImages(names=names, pixels=pixels)


def recogniser_of(bundle: Bundle) -> Recogniser | None:
    """Return the function that recognises a bundle's training images, None when the bundle has no digests.

    Raises: BundleInvalid.
    """
    known = read_training_images(bundle)
    if known is None:
        return None
    spec = bundle.manifest.input

    def recognise(name: str, raw: bytes) -> bool:
        if _name_digest(name) in known.names:
            return True
        image = decoded(raw)
        return not isinstance(image, str) and _pixel_digest(standardised(image, spec)) in known.pixels

    return recognise


def _name_digest(name: str) -> int:
    return _digest(image_key(name).encode())


def _pixel_digest(image: npt.NDArray[np.uint8]) -> int:
    return _digest(np.ascontiguousarray(image).tobytes())


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
