"""Open a bundle only if every file is the one its manifest names."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicomnode.bundle.manifest import Manifest, read_manifest
from dicomnode.domain.errors import BundleInvalid
from dicomnode.domain.finding import ModelIdentity
from dicomnode.domain.frame import FloatArray

MANIFEST, MODEL, GOLDEN, CARD = "manifest.json", "model.onnx", "golden.npz", "MODEL_CARD.md"
GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a logit or map value from its golden one; across processors float32 sums differ by ~1e-5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenVectors:
    """Inputs with the outputs they must give: `image` (N, side, side, 1), and one array per model output."""

    image: FloatArray
    outputs: dict[str, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle on disk. `identity.bundle_hash` is the SHA-256 of the manifest, which holds all others."""

    path: Path
    manifest: Manifest
    identity: ModelIdentity

    @property
    def model_path(self) -> Path:
        """Return the path of the ONNX graph."""
        return self.path / MODEL

    def golden(self) -> GoldenVectors:
        """Read the golden vectors.

        Raises: BundleInvalid.
        """
        try:
            with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
                held = {name: np.asarray(arrays[name], dtype=np.float32) for name in arrays.files}
        except (OSError, ValueError) as error:
            raise BundleInvalid(f"{self.path / GOLDEN} cannot be read") from error
        image = held.pop("image", None)
        if image is None or not held:
            raise BundleInvalid(f"{self.path / GOLDEN} lacks inputs or outputs")
        return GoldenVectors(image=image, outputs=held)


def open_bundle(path: Path) -> Bundle:
    """Verify the hashes of every file and return the bundle.

    Raises: BundleInvalid.
    """
    if not path.is_dir():
        raise BundleInvalid(
            f"there is no bundle folder at {path}: name one that `cxrnode export` wrote, or none for the shipped model"
        )
    manifest = read_manifest(path / MANIFEST)
    for required in (MODEL, GOLDEN, CARD):
        if required not in manifest.files:
            raise BundleInvalid(f"the manifest of {path} does not name {required}")
    for name, expected in manifest.files.items():
        _verify(path, name, expected)
    bundle_hash = file_sha256(path / MANIFEST)
    identity = ModelIdentity(name=manifest.name, version=manifest.version, bundle_hash=bundle_hash)
    return Bundle(path=path, manifest=manifest, identity=identity)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(folder: Path, name: str, expected: str) -> None:
    if Path(name).name != name:
        raise BundleInvalid(f"the manifest of {folder} names a file outside the bundle")
    try:
        actual = file_sha256(folder / name)
    except OSError as error:
        raise BundleInvalid(f"{folder / name} cannot be read: {error.strerror}") from error
    if actual != expected:
        raise BundleInvalid(f"{folder / name} is not the file its manifest names (SHA-256 differs)")
