"""NIH ChestX-ray14: images and labels from the release's own files, and folds that no patient crosses.

Source: Wang et al., "ChestX-ray8", CVPR 2017; https://nihcc.app.box.com/v/ChestXray-NIHCC.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from dicomnode.bundle.manifest import InputSpec
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.terminology import ABNORMALITY, NIH_TERMS
from modeling.augment import PixelStore
from modeling.files import Files
from modeling.pixel_store import EncodedImages, stored_pixels
from modeling.preparation.plan import Matched, match, without_counterpart
from modeling.preparation.problems import Kind, Problem, counted
from modeling.preparation.records import some
from modeling.preparation.sources import open_source, read_bytes
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
"""The model's outputs. Output 0 is "not No Finding", which is less than "abnormal": NIH's labels name 14 findings.

Of a list such as Tang's, output 0 is that list's "abnormal", and nothing is known of the findings.
"""

MANIFEST = "manifest.csv"
LEAST_SIDE = 64
"""Smaller images are not radiographs but thumbnails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiographs:
    """Images with what NIH says of them; every array has one row per image.

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
    """What a label file says. `binary`: labels of the binary head where the file knows nothing else."""

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
    # What is too rare to be in every fold is dealt out with the most frequent.
    strata[np.isin(strata, present[sizes < folds])] = present[sizes.argmax()]
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


def _read_labels(folder: Files, images: Path, labels: Path | None) -> _Labelled:
    """Return what NIH's own table, a subset's manifest or a list of normal and abnormal images says."""
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
        listed = some([f"{problem.subject} ({problem.detail})" for problem in wrong])
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
            f"{len(strange)} names in {path} do not begin with NIH's patient number: {some(strange)}"
        )
    entries = tuple(Entry(name=name, findings=(), patient=nih_patient(name) or "") for name in binary)
    return _Labelled(where=path, table=Table(entries=entries, problems=()), binary=binary)


def _matched(folder: Files, images: Path, labelled: _Labelled, *, partly: bool) -> Sequence[Matched]:
    """Return rows that have an image. `partly`: the rows may be of more images than there are here."""
    sizes, entries = folder.sizes(), labelled.table.entries
    matched, problems = match(entries, sizes, None, labelled.binary)
    problems += without_counterpart({entry.name for entry in entries}, sizes, None, labelled.binary)
    missing = [problem.subject for problem in problems if problem.kind is Kind.IMAGE_MISSING]
    if not matched or (missing and not partly):
        raise ConfigurationError(f"{images} lacks {len(missing)} of the images named: {some(missing)}")
    for kind in sorted({problem.kind for problem in problems}):
        named = [problem.subject for problem in problems if problem.kind is kind]
        log.warning("%s with %s: %d %s: %s", images, labelled.where, len(named), kind, some(named))
    return matched


def _outputs(image: Matched, binary: dict[str, int] | None) -> tuple[float, ...]:
    """Return the 15 labels of an image, NaN where nothing is known."""
    if binary is not None:
        return (float(image.label), *[float("nan")] * len(NIH_TERMS))
    return (float(image.label), *map(float, image.entry.labels))


def _in_words(problems: Sequence[Problem]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in counted(problems).items())
