"""A prepared folder as the trainer takes its images: standardised pixels, 15 outputs, and the folds as written."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.bundle.manifest import InputSpec
from dicomnode.bundle.preprocess import preprocess
from dicomnode.domain.errors import ConfigurationError
from modeling.nih import Radiographs
from modeling.preparation.dataset import MANIFEST, PreparedFolder
from modeling.preparation.records import FINDINGS, Record, decode_pixels, read_records, record_files

_NIH_NAME = re.compile(r"[0-9]{8}_")
Folds = npt.NDArray[np.int64]


def training_set(folder: PreparedFolder, spec: InputSpec, *, test: bool = False) -> tuple[Radiographs, Folds]:
    """Return the images of every fold, or of the official test, with each image's fold, (N,), -1 in the test.

    The pixels are those that `modeling.nih.read_radiographs` makes of the same images, if they were stored without
    loss and no smaller than `spec.source_side`.

    Raises: ConfigurationError when the folder holds none, stores them too small, or a file is damaged.
    """
    if folder.info.side < spec.source_side:
        raise ConfigurationError(
            f"{folder.path} stores images of {folder.info.side} px, the model's input needs {spec.source_side}"
        )
    files = folder.files(test=test)
    count = sum(shard.count for shard in folder.info.shards if (shard.fold is None) == test)
    if not count:
        raise ConfigurationError(f"{folder.path} holds no images of {'the official test' if test else 'any fold'}")
    source_px = _source_px(folder.path)
    stored = spec.model_copy(update={"side": spec.source_side})
    pixels = np.empty((count, spec.source_side, spec.source_side), dtype=np.uint8)
    records = []
    for index, record in enumerate(_records(files)):
        image = decode_pixels(record.image).astype(np.float32) / 255.0
        pixels[index] = np.rint(preprocess(image, stored) * 255.0)
        records.append(record)
    known_px = [source_px[record.name] for record in records]
    radiographs = _radiographs(records, pixels, [record.patient or "" for record in records], known_px)
    return radiographs, np.array([-1 if record.fold is None else record.fold for record in records], dtype=np.int64)


def first_systems_set(folder: Path, spec: InputSpec) -> Radiographs:
    """Return the images of a folder of the first system's records, which know of each its name and the binary label.

    The patient is what NIH's name of the image begins with; the findings are not known.

    Raises: ConfigurationError when a file is damaged, an image too small, or a name not one of NIH's.
    """
    records = [record for file in record_files(folder) for record in read_records(file)]
    strange = [record.name for record in records if not _NIH_NAME.match(record.name)]
    if strange:
        raise ConfigurationError(
            f"{folder}: {len(strange)} images do not begin with NIH's patient number: {strange[0]}"
        )
    images = [decode_pixels(record.image) for record in records]
    small = [record.name for record, image in zip(records, images, strict=True) if min(image.shape) < spec.source_side]
    if small:
        raise ConfigurationError(
            f"{folder}: {len(small)} images are smaller than the input's {spec.source_side} px, such as {small[0]}"
        )
    stored = spec.model_copy(update={"side": spec.source_side})
    pixels = np.stack([np.rint(preprocess(image.astype(np.float32) / 255.0, stored) * 255.0) for image in images])
    patients = [record.name.partition("_")[0] for record in records]
    return _radiographs(records, pixels.astype(np.uint8), patients, [max(image.shape) for image in images])


def _radiographs(
    records: Sequence[Record], pixels: npt.NDArray[np.uint8], patients: Sequence[str], source_px: Sequence[int]
) -> Radiographs:
    return Radiographs(
        names=tuple(record.name for record in records),
        pixels=pixels,
        labels=np.array([_labels(record) for record in records], dtype=np.float32),
        patients=np.array(patients),
        views=np.array([record.view or "" for record in records]),
        source_px=np.array(source_px, dtype=np.int64),
    )


def _labels(record: Record) -> tuple[float, ...]:
    """Return the 15 labels, NaN where the record does not know."""
    unknown = float("nan")
    findings = record.labels or (0,) * len(FINDINGS)
    mask = record.mask or (int(record.labels is not None),) * len(FINDINGS)
    known = (float(value) if counts else unknown for value, counts in zip(findings, mask, strict=True))
    return (unknown if record.label is None else float(record.label), *known)


def _records(files: list[Path]) -> Iterator[Record]:
    for file in files:
        yield from read_records(file)


def _source_px(folder: Path) -> dict[str, int]:
    with (folder / MANIFEST).open(newline="", encoding="utf-8") as file:
        return {row["image"]: int(row["px"]) for row in csv.DictReader(file)}
