"""NIH ChestX-ray14: images and labels from the release's own files, and folds that no patient crosses.

Source: Wang et al., "ChestX-ray8", CVPR 2017; https://nihcc.app.box.com/v/ChestXray-NIHCC.
"""

import csv
import gzip
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from dicomnode.bundle.manifest import InputSpec
from dicomnode.bundle.preprocess import preprocess
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.terminology import ABNORMALITY, NIH_TERMS
from modeling.augment import PixelStore
from modeling.files import Files, open_files

LABELS: tuple[str, ...] = (ABNORMALITY, *NIH_TERMS)
"""The model's outputs. Output 0 is "not No Finding", which is less than "abnormal": NIH's labels name 14 findings."""

NO_FINDING = "No Finding"
MANIFEST = "manifest.csv"
NAMED_AT_MOST = 5
LEAST_SIDE = 64
"""Smaller images are not radiographs but thumbnails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiographs:
    """Images with what NIH says of them; every array has one row per image.

    `pixels`: (N, s, s) uint8, see `PixelStore`. `labels`: (N, 15) float32 of 0 and 1, in the order of `LABELS`.
    `source_px`: the side the image had in the archive, before it was reduced. `views`: "PA" or "AP".
    """

    names: tuple[str, ...]
    pixels: PixelStore
    labels: FloatArray
    patients: npt.NDArray[np.str_]
    views: npt.NDArray[np.str_]
    source_px: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    name: str
    labels: frozenset[str]
    patient: str
    view: str


def read_radiographs(images: Path, labels: Path | None, spec: InputSpec) -> Radiographs:
    """Read the images that `images` (a ZIP archive or a directory) holds, standardised, with their labels.

    `labels` is NIH's `Data_Entry_2017` table (plain or gzip); without it, `manifest.csv` beside the images is read.

    Raises: ConfigurationError when a file is missing or unreadable, or a row cannot be understood.
    """
    with open_files(images) as folder:
        files = {PurePosixPath(name).stem: name for name in folder.sizes() if name.endswith((".png", ".jpg", ".jpeg"))}
        rows = [row for row in _read_table(folder, images, labels) if labels is None or _stem(row) in files]
        missing = [row.name for row in rows if _stem(row) not in files]
        if missing or not rows:
            raise ConfigurationError(f"{images} lacks {len(missing) or 'all'} of the images named: {_some(missing)}")
        decoded = [_decode(folder.read(files[_stem(row)])) for row in rows]
    unreadable = [row.name for row, image in zip(rows, decoded, strict=True) if image is None]
    if unreadable:
        raise ConfigurationError(f"{len(unreadable)} images of {images} cannot be decoded: {_some(unreadable)}")
    images_read = [image for image in decoded if image is not None]
    small = [row.name for row, image in zip(rows, images_read, strict=True) if min(image.shape) < LEAST_SIDE]
    if small:
        raise ConfigurationError(f"{len(small)} images of {images} are smaller than {LEAST_SIDE} px: {_some(small)}")
    return _collect(rows, images_read, spec)


def patient_folds(radiographs: Radiographs, *, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return each image's fold, (N,); all images of a patient share one.

    Folds are stratified by abnormality and by source resolution, since the two are confounded in NIH subsets.
    """
    if len(set(radiographs.patients)) < folds:
        raise ConfigurationError(f"{folds} folds need at least as many patients")
    sources = np.unique(radiographs.source_px, return_inverse=True)[1]
    strata = radiographs.labels[:, 0].astype(np.int64) + 2 * sources
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    assigned = np.empty(len(strata), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(strata, strata, groups=radiographs.patients)):
        assigned[held_out] = fold
    return assigned


def check_folds(labels: FloatArray, folds: npt.NDArray[np.int64], outputs: tuple[str, ...]) -> None:
    """Refuse folds that leave an output nothing to learn from.

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


def _read_table(folder: Files, images: Path, labels: Path | None) -> list[_Row]:
    """Return the table's rows, from NIH's own columns or from those of a subset's manifest."""
    try:
        raw = folder.read(MANIFEST) if labels is None else labels.read_bytes()
    except (OSError, KeyError) as error:
        raise ConfigurationError(f"no label table: neither --labels nor {MANIFEST} in {images} can be read") from error
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    return [_parse_row(row) for row in csv.DictReader(io.StringIO(text))]


def _parse_row(row: dict[str, str]) -> _Row:
    try:
        if "Image Index" in row:
            name, findings = row["Image Index"], row["Finding Labels"]
            patient, view = row["Patient ID"], row["View Position"]
        else:
            name, findings, patient, view = row["image"], row["labels"], row["patient"], row["view"]
    except KeyError as error:
        raise ConfigurationError(f"the label table lacks the column {error}") from error
    named = frozenset(findings.split("|"))
    unknown = named - set(LABELS[1:]) - {NO_FINDING}
    if unknown:
        raise ConfigurationError(f"{name} carries labels that are not NIH's: {', '.join(sorted(unknown))}")
    return _Row(name=name, labels=named - {NO_FINDING}, patient=patient, view=view)


def _decode(raw: bytes) -> npt.NDArray[np.uint8] | None:
    if not raw:
        return None
    image = cv2.imdecode(np.frombuffer(raw, dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
    return None if image is None else np.asarray(image, dtype=np.uint8)


def _collect(rows: list[_Row], images: list[npt.NDArray[np.uint8]], spec: InputSpec) -> Radiographs:
    stored = spec.model_copy(update={"side": spec.source_side})
    pixels = np.empty((len(rows), spec.source_side, spec.source_side), dtype=np.uint8)
    for index, image in enumerate(images):
        pixels[index] = np.rint(preprocess(image.astype(np.float32) / 255.0, stored) * 255.0)
    labels = np.array([[bool(row.labels), *(name in row.labels for name in LABELS[1:])] for row in rows])
    return Radiographs(
        names=tuple(row.name for row in rows),
        pixels=pixels,
        labels=labels.astype(np.float32),
        patients=np.array([row.patient for row in rows]),
        views=np.array([row.view for row in rows]),
        source_px=np.array([max(image.shape) for image in images], dtype=np.int64),
    )


def _stem(row: _Row) -> str:
    return PurePosixPath(row.name).stem


def _some(names: list[str]) -> str:
    listed = ", ".join(names[:NAMED_AT_MOST])
    return f"{listed} …" if len(names) > NAMED_AT_MOST else listed
