"""A prepared folder as the trainer takes its images: standardised pixels, 15 outputs, and the folds as written."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.bundle.manifest import InputSpec
from dicomnode.bundle.preprocess import preprocess
from dicomnode.domain.errors import ConfigurationError
from modeling.nih import Radiographs
from modeling.preparation.dataset import MANIFEST, PreparedFolder
from modeling.preparation.records import Record, decode_pixels, read_records

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
    radiographs = Radiographs(
        names=tuple(record.name for record in records),
        pixels=pixels,
        labels=np.array([(record.label, *(record.labels or ())) for record in records], dtype=np.float32),
        patients=np.array([record.patient or "" for record in records]),
        views=np.array([record.view or "" for record in records]),
        source_px=np.array([source_px[record.name] for record in records], dtype=np.int64),
    )
    return radiographs, np.array([-1 if record.fold is None else record.fold for record in records], dtype=np.int64)


def _records(files: list[Path]) -> Iterator[Record]:
    for file in files:
        yield from read_records(file)


def _source_px(folder: Path) -> dict[str, int]:
    with (folder / MANIFEST).open(newline="", encoding="utf-8") as file:
        return {row["image"]: int(row["px"]) for row in csv.DictReader(file)}
