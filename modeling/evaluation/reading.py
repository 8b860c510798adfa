"""Reads labelled images with a bundle: matches files with rows of the label table, and collects predictions."""

import io
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from dicomnode.domain.errors import ConfigurationError, Permanent
from dicomnode.domain.finding import SaliencyMap, Score
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.terminology import ABNORMALITY
from modeling.evaluation.pointing import BoxedMap, Boxes, compare_with_boxes
from modeling.evaluation.predictions import Predictions
from modeling.files import Files
from modeling.preparation.problems import Kind, Problem
from modeling.preparation.records import FINDINGS
from modeling.preparation.tables import IMAGE_SUFFIXES, Entry, Table, image_key
from modeling.training_images import Recogniser

_MAGIC_AT, _MAGIC = 128, b"DICM"
UNREADABLE_FILES = (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""Errors of reading a file or an archive's member: damaged, encrypted, or packed by an unknown method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """An image file and its row."""

    file: str
    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Images to read, problems of the others, and the number of rows outside the split."""

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
        found[image_key(name)].append(name)
    images = []
    for entry in wanted:
        of_name = found.get(image_key(entry.name), [])
        if len(of_name) == 1:
            images.append(Labelled(file=of_name[0], entry=entry))
        elif of_name:
            problems.append(Problem(kind=Kind.IMAGE_TWICE, subject=entry.name, detail=f"{len(of_name)} files"))
        else:
            problems.append(Problem(kind=Kind.IMAGE_MISSING, subject=entry.name, detail="no file of that name"))
    known = {image_key(entry.name) for entry in table.entries} | {
        image_key(problem.subject) for problem in table.problems
    }
    problems += [
        Problem(kind=Kind.IMAGE_WITHOUT_ROW, subject=name, detail="not in the label table")
        for key, names in found.items()
        if key not in known
        for name in names
    ]
    if not images:
        raise ConfigurationError(f"none of the {len(wanted)} labelled images asked for has a file")
    return Selection(images=tuple(images), problems=tuple(problems), outside_split=outside)


def _within(entries: Sequence[Entry], split: Sequence[str] | None, problems: list[Problem]) -> tuple[list[Entry], int]:
    if split is None:
        return list(entries), 0
    listed = {image_key(name): name for name in split}
    there = {image_key(entry.name) for entry in entries}
    refused = {image_key(problem.subject) for problem in problems}
    problems += [
        Problem(kind=Kind.LISTED_WITHOUT_ROW, subject=name, detail="in the split, not in the label table")
        for key, name in listed.items()
        if key not in there and key not in refused
    ]
    chosen = [entry for entry in entries if image_key(entry.name) in listed]
    return chosen, len(entries) - len(chosen)


def _may_be_image(files: Files, name: str) -> bool:
    """Tell by the suffix, or by the DICOM prefix where the suffix is unknown."""
    path = PurePosixPath(name)
    # macOS leaves a `._NAME` beside each file it packs.
    if path.name.startswith("."):
        return False
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        head = io.BytesIO(files.read(name, _MAGIC_AT + len(_MAGIC)))
    except UNREADABLE_FILES:
        return False
    head.seek(_MAGIC_AT)
    return head.read() == _MAGIC


BATCH = 16
ReportImages = Callable[[int, int], None]
"""Called with the images done and all images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The prediction for one image; `gate` is what the node would do: read, turn, doubt or reject the image."""

    scores: tuple[Score, ...]
    saliency: tuple[SaliencyMap, ...]
    gate: str


Decoder = Callable[[bytes], FloatArray]
"""Bytes of a PNG, JPEG or DICOM file to (rows, columns) float32 in [0, 1], dense bright. Raises: Permanent."""

Reader = Callable[[Sequence[FloatArray]], Sequence[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyBundle:
    """A loaded bundle: its labels, its decoder of files, and its reader of decoded images.

    `recognise`: tells whether an image was one of the training; None when the bundle has no digests of them.
    """

    labels: tuple[str, ...]
    decode: Decoder
    read: Reader
    recognise: Recogniser | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadImages:
    """Predictions, maps compared with boxes, images that could not be read, and names of training images."""

    predictions: Predictions
    maps: tuple[BoxedMap, ...]
    trained_on: tuple[str, ...]
    problems: tuple[Problem, ...]


def read_images(
    files: Files, images: Sequence[Labelled], ensemble: ReadyBundle, boxes: Boxes, progress: ReportImages
) -> ReadImages:
    """Read every image, the last batch as it is.

    Raises: ConfigurationError when no image can be read.
    """
    problems: list[Problem] = []
    entries: list[Entry] = []
    answers: list[Answer] = []
    maps: list[BoxedMap] = []
    trained_on: list[str] = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        decoded = []
        for image in batch:
            pixels = _pixels(files, image, ensemble, problems, trained_on)
            if pixels is not None:
                decoded.append((image.entry, pixels))
        read = ensemble.read([pixels for _, pixels in decoded]) if decoded else ()
        for (entry, _), answer in zip(decoded, read, strict=True):
            entries.append(entry)
            maps += compare_with_boxes(entry.name, entry.patient, answer.saliency, boxes)
            answers.append(Answer(scores=answer.scores, saliency=(), gate=answer.gate))
        progress(min(start + BATCH, len(images)), len(images))
    if not entries:
        raise ConfigurationError(f"none of the {len(images)} images could be read; the first: {problems[0].detail}")
    predictions = _collect(entries, answers, ensemble.labels)
    return ReadImages(predictions=predictions, maps=tuple(maps), trained_on=tuple(trained_on), problems=tuple(problems))


def require_known_labels(ready: ReadyBundle) -> None:
    """Raise ConfigurationError when a label of the bundle is not one that label tables have."""
    unknown = set(ready.labels) - {ABNORMALITY, *FINDINGS}
    if unknown:
        raise ConfigurationError(f"the label table has no labels {', '.join(sorted(unknown))}")


def _pixels(
    files: Files, image: Labelled, ensemble: ReadyBundle, problems: list[Problem], trained_on: list[str]
) -> FloatArray | None:
    """Return an image's pixels; add it to the problems if it has none, and to `trained_on` if it is recognised."""
    try:
        raw = files.read(image.file)
        pixels = ensemble.decode(raw)
    except (Permanent, *UNREADABLE_FILES) as error:
        detail = str(error) or type(error).__name__
        problems.append(Problem(kind=Kind.IMAGE_UNREADABLE, subject=image.entry.name, detail=detail))
        return None
    if ensemble.recognise is not None and ensemble.recognise(image.entry.name, raw):
        trained_on.append(image.entry.name)
    return pixels


def _collect(entries: Sequence[Entry], answers: Sequence[Answer], labels: tuple[str, ...]) -> Predictions:
    truth = [[_holds(entry, label) for label in labels] for entry in entries]
    members = [[score.member_probabilities for score in answer.scores] for answer in answers]
    return Predictions(
        labels=labels,
        images=np.array([entry.name for entry in entries]),
        patients=np.array([entry.patient for entry in entries]),
        views=np.array([(entry.view or "").upper() for entry in entries]),
        sexes=np.array([(entry.sex or "").upper() for entry in entries]),
        ages=np.array([-1 if entry.age is None else entry.age for entry in entries]),
        gate=np.array([answer.gate for answer in answers]),
        sources=np.array([entry.source or "" for entry in entries]),
        truth=np.array(truth, dtype=bool),
        probability=np.array([[score.probability for score in answer.scores] for answer in answers]),
        members=np.array(members).transpose(0, 2, 1),
    )


def _holds(entry: Entry, label: str) -> bool:
    return bool(entry.findings) if label == ABNORMALITY else label in entry.findings
