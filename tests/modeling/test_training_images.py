"""A bundle's digests of its training images find an image by its name or by its pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicomnode.bundle.manifest import Manifest
from dicomnode.bundle.reader import MANIFEST, Bundle, file_sha256, open_bundle
from dicomnode.domain.errors import BundleInvalid
from modeling.export import manifest_text
from modeling.pixel_store import standardised
from modeling.training_images import TRAINING_IMAGES, read_training_images, recogniser_of, write_training_images
from tests.support.bundles import make_bundle


def png(seed: int, side: int = 160) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def grey(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = make_bundle(tmp_path / "bundle")
    manifest = open_bundle(folder).manifest
    pixels = np.stack([standardised(grey(png(seed)), manifest.input) for seed in range(3)])
    write_training_images(folder / TRAINING_IMAGES, [f"{seed:08d}_000.png" for seed in range(3)], pixels)
    named(folder, manifest)
    return open_bundle(folder)


def named(folder: Path, manifest: Manifest) -> None:
    files = manifest.files | {TRAINING_IMAGES: file_sha256(folder / TRAINING_IMAGES)}
    (folder / MANIFEST).write_text(manifest_text(manifest.model_copy(update={"files": files})))


def test_an_image_is_recognised_by_its_name_at_any_size_and_format(bundle: Bundle) -> None:
    recognise = recogniser_of(bundle)
    assert recognise is not None
    assert recognise("images/00000001_000.jpg", b"no image at all")
    assert not recognise("00000009_000.png", png(9))


def test_an_image_is_recognised_by_its_pixels_under_another_name(bundle: Bundle) -> None:
    recognise = recogniser_of(bundle)
    assert recognise is not None
    assert recognise("renamed.png", png(2))
    assert not recognise("renamed.png", png(3))
    assert not recognise("1.2.3.dcm", b"\0" * 128 + b"DICM")


def test_an_older_bundle_has_no_digests(tmp_path: Path) -> None:
    older = open_bundle(make_bundle(tmp_path / "older"))
    assert read_training_images(older) is None
    assert recogniser_of(older) is None


def test_digests_that_cannot_be_read_are_an_invalid_bundle(bundle: Bundle) -> None:
    (bundle.path / TRAINING_IMAGES).write_bytes(b"no archive")
    with pytest.raises(BundleInvalid, match=r"training-images\.npz cannot be read"):
        read_training_images(bundle)
