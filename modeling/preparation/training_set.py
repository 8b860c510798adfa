"""A prepared folder as the trainer takes its images: standardised pixels, 15 outputs, and the folds as written."""

import csv
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.errors import ConfigurationError
from modeling.nih import LEAST_SIDE, Radiographs
from modeling.pixel_store import EncodedImages, stored_pixels
from modeling.preparation.dataset import DATASET, MANIFEST, PreparedFolder
from modeling.preparation.records import (
    FINDINGS,
    Record,
    parse_shard_name,
    read_records,
    record_files,
    some,
)
from modeling.preparation.tables import nih_patient

log = logging.getLogger(__name__)

Folds = npt.NDArray[np.int64]
_TEST_PREFIX = "test"


def training_set(
    folder: PreparedFolder, spec: InputSpec, *, test: bool = False, cache: Path | None = None
) -> tuple[Radiographs, Folds]:
    """Return the images of every fold, or of the official test, with each image's fold, (N,), -1 in the test.

    The pixels are those that `modeling.nih.read_radiographs` makes of the same images, if they were stored without
    loss and no smaller than `spec.source_side`. `cache`: see `modeling.pixel_store.stored_pixels`.

    Raises: ConfigurationError when the folder holds none, stores them too small, a file is damaged, or a patient is in
    two folds; DiskFull.
    """
    if folder.info.side < spec.source_side:
        raise ConfigurationError(
            f"{folder.path} stores images of {folder.info.side} px, the model's input needs {spec.source_side}"
        )
    files = folder.files(test=test)
    records = _without_images(files)
    if not records:
        raise ConfigurationError(f"{folder.path} holds no images of {'the official test' if test else 'any fold'}")
    folds = np.array([-1 if record.fold is None else record.fold for record in records], dtype=np.int64)
    patients = [record.patient or "" for record in records]
    _require_whole_patients(folder.path, patients, folds)
    came_with = _source_px(folder.path, records)
    stored = EncodedImages(
        where=folder.path,
        names=[record.name for record in records],
        read=lambda: _images(files),
        content=[f"{shard.file} {shard.sha256}" for shard in folder.info.shards],
        least_side=spec.source_side,
    )
    pixels, _ = stored_pixels(stored, spec, cache)
    return _radiographs(records, pixels, patients, came_with), folds


def first_systems_set(folder: Path, spec: InputSpec, *, cache: Path | None = None) -> Radiographs:
    """Return the images of a folder of the first system's records, which know of each its name and the binary label.

    The label is that of Tang et al.'s lists: abnormal by a radiologist's report, which is more than "any of the 14
    findings". The patient is what NIH's name of the image begins with; the findings are not known. Files whose name
    begins with "test" are left out, and listed in the log. `cache`: see `modeling.pixel_store.stored_pixels`.

    Raises: ConfigurationError when a file is damaged, an image too small, unlabelled or there twice, or a name not one
    of NIH's; DiskFull.
    """
    files = _training_files(folder)
    records = _without_images(files)
    _require_the_first_systems(folder, records)
    stored = EncodedImages(
        where=folder,
        names=[record.name for record in records],
        read=lambda: _images(files),
        content=[f"{file.name} {file.stat().st_size}" for file in files],
        least_side=max(LEAST_SIDE, spec.source_side),
    )
    pixels, source_px = stored_pixels(stored, spec, cache)
    patients = [nih_patient(record.name) or "" for record in records]
    return _radiographs(records, pixels, patients, source_px)


def _training_files(folder: Path) -> list[Path]:
    files = record_files(folder)
    test = [file for file in files if parse_shard_name(file).prefix.lower().startswith(_TEST_PREFIX)]
    if test:
        left_out = sum(parse_shard_name(file).count for file in test)
        log.warning(
            "%s: %d records of a test are not trained on: %s", folder, left_out, some([file.name for file in test])
        )
    if len(test) == len(files):
        raise ConfigurationError(f"{folder} holds records of a test only: {some([file.name for file in test])}")
    return [file for file in files if file not in test]


def _require_the_first_systems(folder: Path, records: Sequence[Record]) -> None:
    if any(record.patient is not None or record.fold is not None for record in records):
        raise ConfigurationError(
            f"{folder} holds records of `cxrnode data prepare` without its {DATASET}: it is not finished, or was lost"
        )
    times = Counter(record.name for record in records)
    for wrong, what in (
        ([name for name in times if nih_patient(name) is None], "do not begin with NIH's patient number"),
        ([record.name for record in records if record.label is None], "carry no label"),
        ([name for name, number in times.items() if number > 1], "are there more than once"),
    ):
        if wrong:
            raise ConfigurationError(f"{folder}: {len(wrong)} images {what}: {some(wrong)}")


def _require_whole_patients(where: Path, patients: Sequence[str], folds: Folds) -> None:
    # Patient identifiers stay out of messages.
    in_folds = Counter(patient for patient, _ in set(zip(patients, folds.tolist(), strict=True)))
    both = sum(number > 1 for number in in_folds.values())
    if both:
        raise ConfigurationError(
            f"{where}: {both} patients are in more than one fold: a test on them would measure memory"
        )


def _radiographs(
    records: Sequence[Record], pixels: npt.NDArray[np.uint8], patients: Sequence[str], source_px: npt.NDArray[np.int64]
) -> Radiographs:
    return Radiographs(
        names=tuple(record.name for record in records),
        pixels=pixels,
        labels=np.array([_labels(record) for record in records], dtype=np.float32),
        patients=np.array(patients),
        views=np.array([record.view or "" for record in records]),
        source_px=source_px,
    )


def _labels(record: Record) -> tuple[float, ...]:
    """Return the 15 labels, NaN where the record does not know."""
    unknown = float("nan")
    findings = record.labels or (0,) * len(FINDINGS)
    mask = record.mask or (int(record.labels is not None),) * len(FINDINGS)
    known = (float(value) if counts else unknown for value, counts in zip(findings, mask, strict=True))
    return (unknown if record.label is None else float(record.label), *known)


def _without_images(files: Sequence[Path]) -> list[Record]:
    """Return what all records say; their images, gigabytes together, are read again when they are decoded."""
    return [replace(record, image=b"") for file in files for record in read_records(file)]


def _images(files: Sequence[Path]) -> Iterator[bytes]:
    for file in files:
        for record in read_records(file):
            yield record.image


def _source_px(folder: Path, records: Sequence[Record]) -> npt.NDArray[np.int64]:
    """Return the longer side that each image was prepared from, by the manifest."""
    path = folder / MANIFEST
    try:
        with path.open(newline="", encoding="utf-8") as file:
            px = {row["image"]: int(row["px"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read, or is not what was written: prepare it again") from error
    lacking = [record.name for record in records if record.name not in px]
    if lacking:
        raise ConfigurationError(f"{path} lacks {len(lacking)} of the images recorded: {some(lacking)}")
    return np.array([px[record.name] for record in records], dtype=np.int64)
