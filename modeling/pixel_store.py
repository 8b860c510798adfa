"""Standardised pixels of many images: in memory, or above a size in a memory-mapped file."""

import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.bundle.manifest import InputSpec
from dicomnode.bundle.preprocess import preprocess
from dicomnode.domain.errors import ConfigurationError, DiskFull
from modeling.augment import PixelStore
from modeling.files import decoded
from modeling.preparation.problems import first_few

log = logging.getLogger(__name__)

PIXELS, NOTE, LOCK = "pixels.npy", "pixels.json", "pixels.lock"
IN_MEMORY_BYTES = 1 << 30
"""Larger stores are mapped from a file, if there is a folder for it: all of NIH at 256 px are 7.3 GB."""

_VERSION = 1
_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 8 * _THREADS
_TOLD_EVERY = 10_000
Sides = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImages:
    """Images to be standardised. `where` they come from; `names`, for messages, are as many as `read` yields.

    `read` yields each image's encoded bytes, or the reason why there are none. `content` identifies the bytes, for
    instance by file names and sizes: when it changes, the pixels are written anew. `least_side`: smaller ones are
    refused.
    """

    where: Path
    names: Sequence[str]
    read: Callable[[], Iterable[bytes | str]]
    content: Sequence[str]
    least_side: int


def stored_pixels(images: EncodedImages, spec: InputSpec, cache: Path | None) -> tuple[PixelStore, Sides]:
    """Return (N, s, s) uint8 pixels as `PixelStore` says, and (N,) the longer side that each image came with.

    Above `IN_MEMORY_BYTES` the pixels are a file in the folder `cache`, if one is given. The file is complete or
    absent, and is reused only for the same images and specification.

    Raises: ConfigurationError when images cannot be read or are too small, counted and named; DiskFull.
    """
    shape = (len(images.names), spec.source_side, spec.source_side)
    if cache is None or np.prod(shape) <= IN_MEMORY_BYTES:
        pixels = np.empty(shape, dtype=np.uint8)
        return pixels, _fill(pixels, images, spec)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / LOCK).open("w") as lock:
            # Several processes of one run may ask at once: one writes, the others wait for it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _kept(cache, shape, _identity(images, spec)) or _written(cache, shape, images, spec)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"no space left on the device of {cache} for {np.prod(shape) / 1e9:.1f} GB") from error
        raise ConfigurationError(f"{error.filename or cache}: {error.strerror or error}") from error


def standardised(image: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Return (source_side, source_side) pixels of a grey image, as training stores them."""
    stored = spec.model_copy(update={"side": spec.source_side})
    return np.asarray(np.rint(preprocess(image.astype(np.float32) / 255.0, stored) * 255.0), dtype=np.uint8)


def _kept(cache: Path, shape: tuple[int, int, int], identity: str) -> tuple[PixelStore, Sides] | None:
    """Return the pixels that an earlier call wrote of the same images, if the file is complete."""
    try:
        note = json.loads((cache / NOTE).read_bytes())
        pixels, sides = np.load(cache / PIXELS, mmap_mode="r"), np.array(note["sides"], dtype=np.int64)
        same = note["identity"] == identity and pixels.shape == shape and pixels.dtype == np.uint8
    except (FileNotFoundError, ValueError, KeyError, TypeError, EOFError):
        return None
    return (np.asarray(pixels), sides) if same and len(sides) == shape[0] else None


def _written(
    cache: Path, shape: tuple[int, int, int], images: EncodedImages, spec: InputSpec
) -> tuple[PixelStore, Sides]:
    partial = cache / f".{PIXELS}.partial"
    log.info("writing %.1f GB of pixels to %s, which may be removed when the run is over", np.prod(shape) / 1e9, cache)
    try:
        pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        with partial.open("r+b") as file:
            # Reserves the space: with a full disk, a write to a mapped page would kill the process.
            os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
            sides = _fill(pixels, images, spec)
            pixels.flush()
            os.fsync(file.fileno())
        # The pixels get their name last: a note without pixels is ignored, so a kill in between leaves no wrong pair.
        (cache / PIXELS).unlink(missing_ok=True)
        (cache / NOTE).write_text(json.dumps({"identity": _identity(images, spec), "sides": sides.tolist()}))
        partial.replace(cache / PIXELS)
    finally:
        partial.unlink(missing_ok=True)
    return np.asarray(np.load(cache / PIXELS, mmap_mode="r")), sides


def _fill(pixels: PixelStore, images: EncodedImages, spec: InputSpec) -> Sides:
    """Decode and standardise every image into its row, in threads: the decoders release the interpreter's lock."""

    def fill(row: int, encoded: bytes | str) -> tuple[int, int] | str:
        image = encoded if isinstance(encoded, str) else decoded(encoded)
        if isinstance(image, str):
            return image
        if min(image.shape) >= images.least_side:
            pixels[row] = standardised(image, spec)
        return image.shape[0], image.shape[1]

    found: list[tuple[int, int] | str] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in _parts(images.read()):
            found += pool.map(fill, range(len(found), len(found) + len(part)), part)
            if len(found) // _TOLD_EVERY > (len(found) - len(part)) // _TOLD_EVERY:
                log.info("%d of %d images read", len(found), len(images.names))
    return _sides(images, found)


def _sides(images: EncodedImages, found: Sequence[tuple[int, int] | str]) -> Sides:
    named = list(zip(images.names, found, strict=True))
    unreadable = [f"{name} ({reason})" for name, reason in named if isinstance(reason, str)]
    if unreadable:
        raise ConfigurationError(
            f"{len(unreadable)} images of {images.where} cannot be decoded: {first_few(unreadable)}"
        )
    shapes = [shape for shape in found if not isinstance(shape, str)]
    small = [name for name, shape in zip(images.names, shapes, strict=True) if min(shape) < images.least_side]
    if small:
        raise ConfigurationError(
            f"{len(small)} images of {images.where} are smaller than {images.least_side} px: {first_few(small)}"
        )
    return np.array([max(shape) for shape in shapes], dtype=np.int64)


def _parts(encoded: Iterable[bytes | str]) -> Iterator[list[bytes | str]]:
    """Yield the images a few at a time, so that few encoded ones are in memory at once."""
    iterator = iter(encoded)
    while part := list(islice(iterator, _AT_ONCE)):
        yield part


def _identity(images: EncodedImages, spec: InputSpec) -> str:
    # The network's side changes nothing here.
    hashed = hashlib.sha256(json.dumps([_VERSION, spec.model_dump(mode="json", exclude={"side"})]).encode())
    for each in (*images.names, *images.content):
        hashed.update(b"\0" + each.encode())
    return hashed.hexdigest()
