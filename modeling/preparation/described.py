"""What `cxrnode data summary` reads: a prepared folder, record files of any origin, or a label table with images."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dicomnode.domain.errors import ConfigurationError
from modeling.preparation.dataset import DATASET, MANIFEST, open_prepared
from modeling.preparation.records import (
    FINDINGS,
    GreyImage,
    Record,
    decode_pixels,
    read_records,
    record_files,
)
from modeling.preparation.sources import open_source, read_pixels
from modeling.preparation.summary import Image
from modeling.preparation.tables import NO_FINDING, read_table

Pictures = Callable[[Sequence[str]], dict[str, GreyImage]]
"""Returns the pixels of the images named, as far as they are to be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Images, and where to see those that are to be seen. `kind`: what was read."""

    kind: str
    images: tuple[Image, ...]
    seen: frozenset[str]
    pictures: Pictures


def describe(data: Path, images: Path | None) -> Described:
    """Read a prepared folder, a folder of record files, or a label table; `images` is where a table's images are.

    Raises: ConfigurationError.
    """
    if data.is_dir():
        if images is not None:
            raise ConfigurationError("--images goes with a label table; records hold their images")
        return _prepared(data) if (data / DATASET).is_file() else _records(data)
    entries = read_table(data).entries
    described = tuple(
        Image(
            name=entry.name,
            findings=entry.findings,
            label=int(bool(entry.findings)),
            patient=entry.patient,
            view=entry.view,
            sex=entry.sex,
            age=entry.age,
        )
        for entry in entries
    )
    return _with_pictures(described, images)


def _prepared(folder: Path) -> Described:
    """Read the manifest, not the records, which are many times as large."""
    opened = open_prepared(folder)
    with (opened.path / MANIFEST).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    stated = sum(shard.count for shard in opened.info.shards)
    if len(rows) != stated:
        raise ConfigurationError(f"{folder / MANIFEST} has {len(rows)} rows, but the files hold {stated} records")
    images = tuple(
        Image(
            name=row["image"],
            findings=() if row["labels"] == NO_FINDING else tuple(row["labels"].split("|")),
            label=int(row["label"]),
            patient=row["patient"],
            view=row["view"] or None,
            sex=row["sex"] or None,
            age=int(row["age"]) if row["age"] else None,
            part=f"fold {row['fold']}" if row["fold"] else row["split"],
        )
        for row in rows
    )
    shard_of = {row["image"]: folder / row["shard"] for row in rows}

    def pictures(names: Sequence[str]) -> dict[str, GreyImage]:
        return _from_records(sorted({shard_of[name] for name in names}), set(names))

    return Described(kind="prepared", images=images, seen=frozenset(shard_of), pictures=pictures)


def _records(folder: Path) -> Described:
    files = record_files(folder)
    images = tuple(_image_of(record) for path in files for record in read_records(path))
    seen = frozenset(image.name for image in images)
    return Described(kind="records", images=images, seen=seen, pictures=lambda names: _from_records(files, set(names)))


def _image_of(record: Record) -> Image:
    findings = None
    if record.labels is not None and record.mask is not None and all(record.mask):
        findings = tuple(name for name, present in zip(FINDINGS, record.labels, strict=True) if present)
    return Image(
        name=record.name,
        findings=findings,
        label=record.label,
        patient=record.patient,
        view=record.view,
        sex=record.sex,
        age=record.age,
        part=None if record.fold is None else f"fold {record.fold}",
    )


def _from_records(files: Iterable[Path], wanted: set[str]) -> dict[str, GreyImage]:
    found: dict[str, GreyImage] = {}
    for path in files:
        if wanted <= set(found):
            break
        found |= {record.name: decode_pixels(record.image) for record in read_records(path) if record.name in wanted}
    return found


def _with_pictures(described: tuple[Image, ...], images: Path | None) -> Described:
    files: dict[str, str] = {}
    if images is not None:
        with open_source(images) as source:
            files = {PurePosixPath(file).stem: file for file in source.sizes()}
    file_of = {image.name: files[stem] for image in described if (stem := PurePosixPath(image.name).stem) in files}

    def pictures(names: Sequence[str]) -> dict[str, GreyImage]:
        if images is None:
            return {}
        with open_source(images) as source:
            read = {name: read_pixels(source, file_of[name]) for name in names}
        return {name: pixels for name, pixels in read.items() if not isinstance(pixels, str)}

    return Described(kind="label table", images=described, seen=frozenset(file_of), pictures=pictures)
