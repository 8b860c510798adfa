"""NIH ChestX-ray14 as a run trains on it: images, 15 labels, and folds that no patient crosses.

The images come from the release's own files, from a prepared folder, or from records of the first system. Source: Wang
et al., "ChestX-ray8", CVPR 2017; https://nihcc.app.box.com/v/ChestXray-NIHCC.
"""

import csv
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.terminology import ABNORMALITY, NIH_TERMS
from modeling.augment import PixelStore
from modeling.files import Files, open_source, read_bytes
from modeling.pixel_store import EncodedImages, stored_pixels
from modeling.preparation.dataset import DATASET, MANIFEST, PreparedFolder
from modeling.preparation.plan import Matched, match, without_counterpart
from modeling.preparation.problems import Kind, Problem, counted, first_few
from modeling.preparation.records import FINDINGS, Record, parse_shard_name, read_records, record_files
from modeling.preparation.tables import (
    Entry,
    Table,
    is_binary_list,
    nih_patient,
    parse_table,
    read_binary_labels,
    read_text,
    text_of,
)

log = logging.getLogger(__name__)

LABELS: tuple[str, ...] = (ABNORMALITY, *NIH_TERMS)
"""The model's outputs.

With NIH's table, output 0 is true when at least one of the 14 findings is named, which does not cover every
abnormality. With a list such as Tang's, output 0 is that list's "abnormal", and the findings are unknown.
"""

LEAST_SIDE = 64
"""Smaller images are not radiographs but thumbnails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiographs:
    """Images and their NIH labels; every array has one row per image.

    `pixels`: (N, s, s) uint8, see `PixelStore`; they may be mapped from a file and read-only. `labels`: (N, 15) float32
    of 0 and 1, in the order of `LABELS`, NaN where nothing is known. `views`: "PA", "AP", or "" where it is not known.
    `source_px`: the longer side that the image had in the archive, before it was reduced.
    """

    names: tuple[str, ...]
    pixels: PixelStore
    labels: FloatArray
    patients: npt.NDArray[np.str_]
    views: npt.NDArray[np.str_]
    source_px: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labelled:
    """The contents of a label file. `binary`: labels of the binary head, if the file has no others."""

    where: Path
    table: Table
    binary: dict[str, int] | None = None


def read_radiographs(images: Path, labels: Path | None, spec: InputSpec, *, cache: Path | None = None) -> Radiographs:
    """Read the images that `images` (a ZIP archive or a directory) holds, standardised, with their labels.

    `labels` is NIH's `Data_Entry_2017` table or a list such as Tang's, `NAME 0|1` a line, plain or gzip; without it,
    `manifest.csv` beside the images is read. `cache`: see `stored_pixels`. Images without a row, and rows without an
    image where `labels` is given, are left out and counted in the log.

    Raises: ConfigurationError when a file is missing or unreadable, or a row cannot be understood; DiskFull.
    """
    with open_source(images) as folder:
        labelled = _read_labels(folder, images, labels)
        matched = _matched(folder, images, labelled, partly=labels is not None)
        encoded = EncodedImages(
            where=images,
            names=[image.entry.name for image in matched],
            read=lambda: (read_bytes(folder, image.file) for image in matched),
            content=[f"{image.file} {image.size_bytes}" for image in matched],
            least_side=LEAST_SIDE,
        )
        pixels, source_px = stored_pixels(encoded, spec, cache)
    entries = [image.entry for image in matched]
    return Radiographs(
        names=tuple(encoded.names),
        pixels=pixels,
        labels=np.array([_outputs(image, labelled.binary) for image in matched], dtype=np.float32),
        patients=np.array([entry.patient for entry in entries]),
        views=np.array([entry.view or "" for entry in entries]),
        source_px=source_px,
    )


def patient_folds(radiographs: Radiographs, *, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return each image's fold, (N,); all images of a patient share one.

    Folds are stratified by abnormality and by source resolution, since the two are confounded in NIH subsets.

    Raises: ConfigurationError when there are fewer patients than folds.
    """
    if len(set(radiographs.patients)) < folds:
        raise ConfigurationError(f"{folds} folds need at least as many patients")
    sources = np.unique(radiographs.source_px, return_inverse=True)[1]
    unknown = 2
    strata = np.nan_to_num(radiographs.labels[:, 0], nan=unknown).astype(np.int64) + 3 * sources
    present, sizes = np.unique(strata, return_counts=True)
    # A stratum with fewer images than folds joins the largest stratum.
    strata[np.isin(strata, present[sizes < folds])] = present[sizes.argmax()]
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    assigned = np.empty(len(strata), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(strata, strata, groups=radiographs.patients)):
        assigned[held_out] = fold
    return assigned


def check_folds(labels: FloatArray, folds: npt.NDArray[np.int64], outputs: tuple[str, ...]) -> None:
    """Refuse folds whose training images have no positives or no negatives of an output.

    `labels`: (N, outputs), NaN where not known; `folds`: (N,).

    Raises: ConfigurationError naming the output, the fold and the counts.
    """
    for fold in np.unique(folds):
        training = labels[folds != fold]
        for name, positives, known in zip(
            outputs, np.nansum(training, axis=0), (~np.isnan(training)).sum(axis=0), strict=True
        ):
            if not 0 < positives < known:
                raise ConfigurationError(
                    f"without fold {fold} there is too little of {name} to train on: {int(positives)} positives and"
                    f" {int(known - positives)} negatives"
                )


def _read_labels(folder: Files, images: Path, labels: Path | None) -> _Labelled:
    """Read NIH's own table, a subset's manifest, or a list of normal and abnormal images."""
    if labels is not None:
        text, where = read_text(labels), labels
        if is_binary_list(text):
            return _read_list(labels)
    else:
        raw, where = read_bytes(folder, MANIFEST), images / MANIFEST
        if isinstance(raw, str):
            raise ConfigurationError(f"no label table: neither --labels nor {MANIFEST} in {images} can be read")
        text = text_of(raw, where)
    table = parse_table(text, where)
    wrong = [problem for problem in table.problems if problem.skipped]
    if wrong:
        listed = first_few([f"{problem.subject} ({problem.detail})" for problem in wrong])
        raise ConfigurationError(
            f"{len(wrong)} rows of {where} cannot be used ({_in_words(wrong)}): {listed}. `cxrnode data prepare` lists"
            " them all and leaves them out"
        )
    return _Labelled(where=where, table=table)


def _read_list(path: Path) -> _Labelled:
    binary = read_binary_labels([path])
    strange = [name for name in binary if nih_patient(name) is None]
    if strange:
        raise ConfigurationError(
            f"{len(strange)} names in {path} do not begin with NIH's patient number: {first_few(strange)}"
        )
    entries = tuple(Entry(name=name, findings=(), patient=nih_patient(name) or "") for name in binary)
    return _Labelled(where=path, table=Table(entries=entries, problems=()), binary=binary)


def _matched(folder: Files, images: Path, labelled: _Labelled, *, partly: bool) -> Sequence[Matched]:
    """Return rows that have an image. `partly`: rows without an image are allowed."""
    sizes, entries = folder.sizes(), labelled.table.entries
    matched, problems = match(entries, sizes, None, labelled.binary)
    problems += without_counterpart({entry.name for entry in entries}, sizes, None, labelled.binary)
    missing = [problem.subject for problem in problems if problem.kind is Kind.IMAGE_MISSING]
    if not matched or (missing and not partly):
        raise ConfigurationError(f"{images} lacks {len(missing)} of the images named: {first_few(missing)}")
    for kind in sorted({problem.kind for problem in problems}):
        named = [problem.subject for problem in problems if problem.kind is kind]
        log.warning("%s with %s: %d %s: %s", images, labelled.where, len(named), kind, first_few(named))
    return matched


def _outputs(image: Matched, binary: dict[str, int] | None) -> tuple[float, ...]:
    """Return the 15 labels of an image, NaN where nothing is known."""
    if binary is not None:
        return (float(image.label), *[float("nan")] * len(NIH_TERMS))
    return (float(image.label), *map(float, image.entry.labels))


def _in_words(problems: Sequence[Problem]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in counted(problems).items())


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
    """Return the images of a folder of the first system's records, which contain a name and the binary label only.

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
            "%s: %d records of a test are not trained on: %s", folder, left_out, first_few([file.name for file in test])
        )
    if len(test) == len(files):
        raise ConfigurationError(f"{folder} holds records of a test only: {first_few([file.name for file in test])}")
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
            raise ConfigurationError(f"{folder}: {len(wrong)} images {what}: {first_few(wrong)}")


def _require_whole_patients(where: Path, patients: Sequence[str], folds: Folds) -> None:
    # Patient identifiers stay out of messages.
    in_folds = Counter(patient for patient, _ in set(zip(patients, folds.tolist(), strict=True)))
    both = sum(number > 1 for number in in_folds.values())
    if both:
        raise ConfigurationError(
            f"{where}: {both} patients are in more than one fold: a test on them would not be independent"
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
    """Return the 15 labels, NaN where the record has none."""
    unknown = float("nan")
    findings = record.labels or (0,) * len(FINDINGS)
    mask = record.mask or (int(record.labels is not None),) * len(FINDINGS)
    known = (float(value) if counts else unknown for value, counts in zip(findings, mask, strict=True))
    return (unknown if record.label is None else float(record.label), *known)


def _without_images(files: Sequence[Path]) -> list[Record]:
    """Return all records without their images, which are gigabytes together and are read again for decoding."""
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
        raise ConfigurationError(f"{path} lacks {len(lacking)} of the images recorded: {first_few(lacking)}")
    return np.array([px[record.name] for record in records], dtype=np.int64)
