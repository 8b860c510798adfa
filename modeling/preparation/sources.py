"""Images as files: which files are images, their size by the header, and their pixels."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from modeling.files import Files, open_files
from modeling.preparation.records import UNREADABLE_PIXELS, GreyImage, grey

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
