"""The predictions for each labelled image, in memory and as `predictions.csv`."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.domain.errors import ConfigurationError

FILE = "predictions.csv"
_ABOUT = ("image", "patient", "view", "sex", "age", "gate", "source")
_OLD_ABOUT = _ABOUT[:-1]
"""Columns of tables that were written before the source was one."""
_TRUTH, _MEMBER = "_truth", "_member"
UNKNOWN_AGE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """One row per image in every array.

    `truth`: (N, labels). `probability`: (N, labels) calibrated, of the ensemble. `members`: (N, members, labels)
    calibrated. `views`, `sexes`, `sources`, `gate` are "" where unknown, `ages` -1. `gate`: the pixel gate's verdict.
    """

    labels: tuple[str, ...]
    images: npt.NDArray[np.str_]
    patients: npt.NDArray[np.str_]
    views: npt.NDArray[np.str_]
    sexes: npt.NDArray[np.str_]
    ages: npt.NDArray[np.int64]
    gate: npt.NDArray[np.str_]
    sources: npt.NDArray[np.str_]
    truth: npt.NDArray[np.bool_]
    probability: npt.NDArray[np.float64]
    members: npt.NDArray[np.float64]

    def rows(self, index: npt.NDArray[np.integer]) -> "Predictions":
        """Return the images at these positions, in this order."""
        chosen = {name: getattr(self, name)[index] for name in self.__slots__ if name != "labels"}
        return Predictions(labels=self.labels, **chosen)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the table: attributes of the image, then per label the truth, the ensemble and each member."""
    members = predictions.members.shape[1]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*_ABOUT, *(column for label in predictions.labels for column in _columns(label, members))))
        writer.writerows(_row(predictions, index) for index in range(len(predictions.images)))


def read_predictions(folder: Path) -> Predictions:
    """Read the table of an evaluation's folder.

    Raises: ConfigurationError when there is none, or it is not one that `write_predictions` wrote.
    """
    path = folder / FILE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header, rows = tuple(reader.fieldnames or ()), list(reader)
        return _parse(header, rows)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}): is {folder} an evaluation?") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise ConfigurationError(f"{path} is not a table of predictions: {error}") from error


def _columns(label: str, members: int) -> Iterator[str]:
    yield label + _TRUTH
    yield label
    yield from (f"{label}{_MEMBER}{number}" for number in range(1, members + 1))


def _row(predictions: Predictions, index: int) -> Iterator[str]:
    for values in (predictions.images, predictions.patients, predictions.views, predictions.sexes):
        yield str(values[index])
    age = int(predictions.ages[index])
    yield "" if age == UNKNOWN_AGE else str(age)
    yield str(predictions.gate[index])
    yield str(predictions.sources[index])
    for at in range(len(predictions.labels)):
        yield str(int(predictions.truth[index, at]))
        yield f"{predictions.probability[index, at]:.6g}"
        yield from (f"{value:.6g}" for value in predictions.members[index, :, at])


def _parse(header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Predictions:
    labels = tuple(name.removesuffix(_TRUTH) for name in header if name.endswith(_TRUTH))
    if not labels or not rows:
        raise ValueError("no labels or no rows")
    members = sum(name.startswith(labels[0] + _MEMBER) for name in header)
    columns = tuple(column for label in labels for column in _columns(label, members))
    if tuple(header) not in {(*_ABOUT, *columns), (*_OLD_ABOUT, *columns)}:
        raise ValueError("it has other columns")

    def numbers(columns: Sequence[str]) -> npt.NDArray[np.float64]:
        return np.array([[float(row[column]) for column in columns] for row in rows])

    individual = [f"{label}{_MEMBER}{number}" for number in range(1, members + 1) for label in labels]
    about = {name: np.array([row.get(name, "") for row in rows]) for name in _ABOUT if name != "age"}
    return Predictions(
        labels=labels,
        images=about["image"],
        patients=about["patient"],
        views=about["view"],
        sexes=about["sex"],
        ages=np.array([int(row["age"] or UNKNOWN_AGE) for row in rows]),
        gate=about["gate"],
        sources=about["source"],
        truth=numbers([label + _TRUTH for label in labels]) > 0.5,
        probability=numbers(labels),
        members=numbers(individual).reshape(len(rows), members, len(labels)),
    )
