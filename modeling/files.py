"""Files that are read and written: a folder or ZIP archive of images, their pixels, and files replaced durably."""

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from dicomnode.domain.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Files by their name within a directory or an archive, in the order of the names.

    `sizes` lists them anew with their bytes; `open` opens one for reading.
    """

    sizes: Callable[[], dict[str, int]]
    open: Callable[[str], BinaryIO]

    def read(self, name: str, limit: int = -1) -> bytes:
        """Return a file's bytes, at most `limit` of them."""
        with self.open(name) as file:
            return file.read(limit)


@contextmanager
def open_files(path: Path) -> Iterator[Files]:
    """Open a directory or a ZIP archive.

    Raises: ConfigurationError when it is neither.
    """
    if path.is_dir():
        yield Files(sizes=lambda: _sizes_below(path), open=lambda name: (path / name).open("rb"))
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path} is neither a directory nor a readable ZIP archive") from error
    with archive:
        yield Files(sizes=lambda: _sizes_in(archive), open=lambda name: cast("BinaryIO", archive.open(name)))


def _sizes_below(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _sizes_in(archive: zipfile.ZipFile) -> dict[str, int]:
    members = sorted(archive.infolist(), key=lambda info: info.filename)
    return {info.filename: info.file_size for info in members if not info.is_dir()}


GreyImage = npt.NDArray[np.uint8]


UNREADABLE_PIXELS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""Errors of Pillow on damaged or hostile image files."""


def grey(image: Image.Image) -> GreyImage:
    """Return (rows, columns) uint8 of an opened image, whatever its mode; 16 bits are reduced to their upper 8.

    Raises: one of `UNREADABLE_PIXELS`.
    """
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        return np.asarray(np.clip(deep, 0, 65535) // 257, dtype=np.uint8)
    # Every band of NIH's few colour files is the same grey; alpha is opaque.
    return np.array(image.convert("RGB").convert("L") if image.mode == "P" else image.convert("L"))


def resized(pixels: GreyImage, side: int) -> GreyImage:
    """Return (side, side), squashed as `dicomnode.bundle.preprocess` does: by area to shrink, linearly to grow."""
    if pixels.shape == (side, side):
        return pixels
    method = cv2.INTER_AREA if min(pixels.shape) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=method), dtype=np.uint8)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file's content, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_UNREADABLE = (*UNREADABLE_PIXELS, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


@contextmanager
def open_source(path: Path) -> Iterator[Files]:
    """Open a directory or a ZIP archive, of which only PNG and JPEG files are seen.

    Raises: ConfigurationError when it is neither.
    """
    with open_files(path) as files:
        yield replace(files, sizes=lambda: {name: size for name, size in files.sizes().items() if _is_image(name)})


def probe(source: Files, name: str) -> tuple[int, int] | str:
    """Return an image's (rows, columns) from its header, or the reason why it cannot be read."""
    try:
        with source.open(name) as file, Image.open(file) as image:
            return image.height, image.width
    except _UNREADABLE as error:
        return _reason(error)


def read_pixels(source: Files, name: str) -> GreyImage | str:
    """Return (rows, columns) uint8, or the reason why the file cannot be read."""
    raw = read_bytes(source, name)
    return raw if isinstance(raw, str) else decoded(raw)


def read_bytes(source: Files, name: str) -> bytes | str:
    """Return a file's bytes, or the reason why it cannot be read."""
    try:
        return source.read(name)
    except _UNREADABLE as error:
        return _reason(error)


def decoded(encoded: bytes) -> GreyImage | str:
    """Return (rows, columns) uint8 of PNG or JPEG bytes, or the reason why they cannot be read."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return grey(image)
    except _UNREADABLE as error:
        return _reason(error)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS leaves a `._NAME` beside each file it packs.
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no PNG or JPEG image"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
