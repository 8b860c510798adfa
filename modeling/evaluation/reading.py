"""Images through the ensemble: every labelled image becomes a row or a listed problem."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dicomnode.domain.errors import ConfigurationError, Permanent
from dicomnode.domain.finding import SaliencyMap, Score
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.terminology import ABNORMALITY
from modeling.evaluation.images import UNREADABLE_FILES, Labelled
from modeling.evaluation.pointing import Boxes, Throw, throws_of
from modeling.evaluation.predictions import Predictions
from modeling.files import Files
from modeling.preparation.problems import Kind, Problem
from modeling.preparation.records import FINDINGS
from modeling.preparation.tables import Entry

BATCH = 16
Progress = Callable[[int, int], None]
"""Called with the images done and all images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the ensemble says of one image; `gate` is what the node would do: read, turn, doubt or reject it."""

    scores: tuple[Score, ...]
    saliency: tuple[SaliencyMap, ...]
    gate: str


Decoder = Callable[[bytes], FloatArray]
"""Bytes of a PNG, JPEG or DICOM file to (rows, columns) float32 in [0, 1], dense bright. Raises: Permanent."""

Reader = Callable[[Sequence[FloatArray]], Sequence[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """A bundle, ready: its labels, and the two steps from a file to an answer."""

    labels: tuple[str, ...]
    decode: Decoder
    read: Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadImages:
    """The rows, the pointing game's throws, and the images that could not be read."""

    predictions: Predictions
    throws: tuple[Throw, ...]
    problems: tuple[Problem, ...]


def read_images(
    files: Files, images: Sequence[Labelled], ensemble: Ensemble, boxes: Boxes, progress: Progress
) -> ReadImages:
    """Read every image, the last batch as it is.

    Raises: ConfigurationError when a label of the bundle is not one of the table's, or no image can be read.
    """
    unknown = set(ensemble.labels) - {ABNORMALITY, *FINDINGS}
    if unknown:
        raise ConfigurationError(f"the label table says nothing of the bundle's labels {', '.join(sorted(unknown))}")
    problems: list[Problem] = []
    entries: list[Entry] = []
    answers: list[Answer] = []
    throws: list[Throw] = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        decoded = [
            (one.entry, pixels) for one in batch if (pixels := _pixels(files, one, ensemble, problems)) is not None
        ]
        read = ensemble.read([pixels for _, pixels in decoded]) if decoded else ()
        for (entry, _), answer in zip(decoded, read, strict=True):
            entries.append(entry)
            throws += throws_of(entry.name, entry.patient, answer.saliency, boxes)
            answers.append(Answer(scores=answer.scores, saliency=(), gate=answer.gate))
        progress(min(start + BATCH, len(images)), len(images))
    if not entries:
        raise ConfigurationError(f"none of the {len(images)} images could be read; the first: {problems[0].detail}")
    predictions = _collect(entries, answers, ensemble.labels)
    return ReadImages(predictions=predictions, throws=tuple(throws), problems=tuple(problems))


def _pixels(files: Files, image: Labelled, ensemble: Ensemble, problems: list[Problem]) -> FloatArray | None:
    try:
        return ensemble.decode(files.read(image.file))
    except (Permanent, *UNREADABLE_FILES) as error:
        detail = str(error) or type(error).__name__
        problems.append(Problem(kind=Kind.IMAGE_UNREADABLE, subject=image.entry.name, detail=detail))
        return None


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
        truth=np.array(truth, dtype=bool),
        probability=np.array([[score.probability for score in answer.scores] for answer in answers]),
        members=np.array(members).transpose(0, 2, 1),
    )


def _holds(entry: Entry, label: str) -> bool:
    return bool(entry.findings) if label == ABNORMALITY else label in entry.findings
