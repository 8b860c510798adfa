"""Where images are read from: a directory with any subfolders, or a ZIP archive."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

from PIL import Image, UnidentifiedImageError

from dicomnode.domain.errors import ConfigurationError
from modeling.preparation.records import UNREADABLE_PIXELS, GreyImage, grey

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_UNREADABLE = (*UNREADABLE_PIXELS, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


class ImageSource(Protocol):
    """Image files by their name within the source."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each image file by its name, in the order of the names."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open one file for reading."""
        ...


class _Directory:
    def __init__(self, path: Path) -> None:
        self._path = path

    def sizes(self) -> dict[str, int]:
        files = sorted(path for path in self._path.rglob("*") if _is_image(path.relative_to(self._path).as_posix()))
        return {path.relative_to(self._path).as_posix(): path.stat().st_size for path in files if path.is_file()}

    def open(self, name: str) -> BinaryIO:
        return (self._path / name).open("rb")


class _Archive:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def sizes(self) -> dict[str, int]:
        held = sorted(self._archive.infolist(), key=lambda info: info.filename)
        return {info.filename: info.file_size for info in held if _is_image(info.filename)}

    def open(self, name: str) -> BinaryIO:
        return cast("BinaryIO", self._archive.open(name))


@contextmanager
def open_source(path: Path) -> Iterator[ImageSource]:
    """Open a directory or a ZIP archive of images.

    Raises: ConfigurationError when it is neither.
    """
    if path.is_dir():
        yield _Directory(path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path} is neither a directory nor a readable ZIP archive") from error
    with archive:
        yield _Archive(archive)


def probe(source: ImageSource, name: str) -> tuple[int, int] | str:
    """Return an image's (rows, columns) from its header, or the reason why it cannot be read."""
    try:
        with source.open(name) as file, Image.open(file) as image:
            return image.height, image.width
    except _UNREADABLE as error:
        return _reason(error)


def read_pixels(source: ImageSource, name: str) -> GreyImage | str:
    """Return (rows, columns) uint8, or the reason why the file cannot be read."""
    try:
        with source.open(name) as file:
            raw = file.read()
        with Image.open(io.BytesIO(raw)) as image:
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
