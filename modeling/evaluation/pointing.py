"""The pointing game: how often the highest point of a label's map lies in the box that a radiologist drew.

Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016; boxes of Wang et al., CVPR 2017.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.finding import SaliencyMap
from dicomnode.domain.frame import FloatArray
from modeling.evaluation.intervals import Resampler, Values, Weights, estimate_of
from modeling.metrics import Estimate
from modeling.preparation.tables import image_key, read_text

SIDE_OF_BOXES = 1024
"""NIH's boxes are in pixels of its 1024 by 1024 renderings, whatever size the images at hand have."""

TOLERANCE = 15 / SIDE_OF_BOXES
"""How far outside the box a hit may lie, as a share of the side: 15 pixels, as in the original game."""

_OTHER_NAMES = {"Infiltrate": "Infiltration"}
_GRID = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box as shares of the image's width and height."""

    left: float
    top: float
    width: float
    height: float

    def holds(self, x: float, y: float) -> bool:
        """Tell whether the point lies in the box, with the tolerance."""
        across = self.left - TOLERANCE <= x <= self.left + self.width + TOLERANCE
        return across and self.top - TOLERANCE <= y <= self.top + self.height + TOLERANCE

    @property
    def area(self) -> float:
        """Return the share of the image in which a point would hit."""
        right, bottom = min(1.0, self.left + self.width + TOLERANCE), min(1.0, self.top + self.height + TOLERANCE)
        return max(0.0, right - max(0.0, self.left - TOLERANCE)) * max(0.0, bottom - max(0.0, self.top - TOLERANCE))


Boxes = dict[str, dict[str, tuple[Box, ...]]]
"""Boxes by image, as `image_key` names it, and by label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throw:
    """One image and label with boxes: whether the map's highest point hit one, and how likely chance is to."""

    patient: str
    label: str
    hit: bool
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Localisation:
    """The game's result for one label, or for all of them together."""

    throws: int
    hits: int
    rate: Estimate | None
    chance: float


def read_boxes(path: Path, labels: Sequence[str]) -> Boxes:
    """Read NIH's `BBox_List_2017.csv`: image, label, x, y, width and height.

    Raises: ConfigurationError when a row is not one of those, or names a label the bundle does not have.
    """
    boxes: dict[str, dict[str, tuple[Box, ...]]] = defaultdict(lambda: defaultdict(tuple))
    rows = csv.reader(io.StringIO(read_text(path)))
    next(rows, None)
    for line, row in enumerate(rows, start=2):
        try:
            name, given, (x, y, width, height) = row[0], row[1], (float(cell) / SIDE_OF_BOXES for cell in row[2:6])
        except (IndexError, ValueError) as error:
            raise ConfigurationError(f"{path}, line {line}: not an image, a label and a box") from error
        label = _OTHER_NAMES.get(given, given)
        if label not in labels:
            raise ConfigurationError(f"{path}, line {line}: the bundle has no label {given!r}")
        boxes[image_key(name)][label] += (Box(left=x, top=y, width=width, height=height),)
    if not boxes:
        raise ConfigurationError(f"{path} holds no boxes")
    return {image: dict(by_label) for image, by_label in boxes.items()}


def throws_of(image: str, patient: str, saliency: Iterable[SaliencyMap], boxes: Boxes) -> list[Throw]:
    """Play the game for every label of the image that has boxes."""
    boxes_of = boxes.get(image_key(image), {})
    maps = {entry.label: entry.values for entry in saliency if entry.label in boxes_of}
    thrown = []
    for label, values in maps.items():
        x, y = _highest(values)
        thrown.append(
            Throw(
                patient=patient,
                label=label,
                hit=any(box.holds(x, y) for box in boxes_of[label]),
                chance=min(1.0, sum(box.area for box in boxes_of[label])),
            )
        )
    return thrown


def localisation(throws: Sequence[Throw], *, rounds: int, seed: int) -> dict[str, Localisation]:
    """Return the result per label, and of all under "all", with intervals that respect patients."""
    if not throws:
        return {}
    resampler = Resampler(np.array([throw.patient for throw in throws]), rounds=rounds, seed=seed)
    hit = np.array([throw.hit for throw in throws])
    chance = np.array([throw.chance for throw in throws])
    of_label = np.array([throw.label for throw in throws])
    groups = {"all": np.ones(len(throws), dtype=bool)}
    groups |= {str(label): of_label == label for label in np.unique(of_label)}
    results = {}
    for name, rows in groups.items():
        inside = hit[rows].astype(np.float64)

        def rate(weights: Weights, inside: Values = inside) -> Values:
            return np.asarray(weights @ inside / weights.sum(axis=1))

        results[name] = Localisation(
            throws=int(rows.sum()),
            hits=int(hit[rows].sum()),
            rate=estimate_of(resampler.values(rate, rows)),
            chance=float(chance[rows].mean()),
        )
    return results


def _highest(values: FloatArray) -> tuple[float, float]:
    """Return (x, y), as shares of width and height, of the highest point of the map enlarged smoothly."""
    smooth = cv2.resize(np.ascontiguousarray(values), (_GRID, _GRID), interpolation=cv2.INTER_CUBIC)
    row, column = np.unravel_index(int(np.argmax(smooth)), smooth.shape)
    return (float(column) + 0.5) / _GRID, (float(row) + 0.5) / _GRID
