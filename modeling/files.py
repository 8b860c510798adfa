"""Where images come from: a directory with any subfolders, or a ZIP archive."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

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
    held = sorted(archive.infolist(), key=lambda info: info.filename)
    return {info.filename: info.file_size for info in held if not info.is_dir()}
