"""Which image files belong to which rows of a label table, and what belongs to nothing."""

import io
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dicomnode.domain.errors import ConfigurationError
from modeling.files import Files
from modeling.preparation.problems import Kind, Problem
from modeling.preparation.tables import Entry, Table

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})
_MAGIC_AT, _MAGIC = 128, b"DICM"
UNREADABLE_FILES = (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""What reading a file or an archive's member raises: damaged, encrypted, packed by an unknown method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """An image file and its row."""

    file: str
    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is to be read, what is wrong with the rest, and how many rows the split leaves out."""

    images: tuple[Labelled, ...]
    problems: tuple[Problem, ...]
    outside_split: int


def select(files: Files, table: Table, split: Sequence[str] | None) -> Selection:
    """Join files and rows by name; an image's suffix does not count, so that `A.png` finds `A.jpg` and `A.dcm`.

    Raises: ConfigurationError when no row has an image.
    """
    problems = list(table.problems)
    wanted, outside = _within(table.entries, split, problems)
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(filter(lambda name: _may_be_image(files, name), files.sizes())):
        found[key_of(name)].append(name)
    images = []
    for entry in wanted:
        held = found.get(key_of(entry.name), [])
        if len(held) == 1:
            images.append(Labelled(file=held[0], entry=entry))
        elif held:
            problems.append(Problem(kind=Kind.IMAGE_TWICE, subject=entry.name, detail=f"{len(held)} files"))
        else:
            problems.append(Problem(kind=Kind.IMAGE_MISSING, subject=entry.name, detail="no file of that name"))
    known = {key_of(entry.name) for entry in table.entries} | {key_of(problem.subject) for problem in table.problems}
    problems += [
        Problem(kind=Kind.IMAGE_WITHOUT_ROW, subject=name, detail="not in the label table")
        for key, names in found.items()
        if key not in known
        for name in names
    ]
    if not images:
        raise ConfigurationError(f"none of the {len(wanted)} labelled images asked for has a file")
    return Selection(images=tuple(images), problems=tuple(problems), outside_split=outside)


def key_of(name: str) -> str:
    """Return the name by which an image is known: without folders, and without the suffix of an image format."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in _SUFFIXES else path.name


def _within(entries: Sequence[Entry], split: Sequence[str] | None, problems: list[Problem]) -> tuple[list[Entry], int]:
    if split is None:
        return list(entries), 0
    listed = {key_of(name): name for name in split}
    there = {key_of(entry.name) for entry in entries}
    refused = {key_of(problem.subject) for problem in problems}
    problems += [
        Problem(kind=Kind.LISTED_WITHOUT_ROW, subject=name, detail="in the split, not in the label table")
        for key, name in listed.items()
        if key not in there and key not in refused
    ]
    chosen = [entry for entry in entries if key_of(entry.name) in listed]
    return chosen, len(entries) - len(chosen)


def _may_be_image(files: Files, name: str) -> bool:
    """Tell by the suffix, or by the DICOM magic where the suffix says nothing."""
    path = PurePosixPath(name)
    # macOS leaves a `._NAME` beside each file it packs.
    if path.name.startswith("."):
        return False
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        head = io.BytesIO(files.read(name, _MAGIC_AT + len(_MAGIC)))
    except UNREADABLE_FILES:
        return False
    head.seek(_MAGIC_AT)
    return head.read() == _MAGIC
