"""Localisation: how well a label's map agrees with the boxes that a radiologist drew.

Two measures per label. The pointing game asks whether the highest point of the map lies in a box; the share inside is
the part of the map's positive values that lies in the boxes. Both are compared with baselines that see no image: the
image's centre (for the share: a flat map), and the mean of the label's boxes in images of other patients.
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
from modeling.evaluation.intervals import Resampler, Statistic, Values, estimate_of
from modeling.metrics import BoolArray, Estimate
from modeling.preparation.tables import image_key, read_text

SIDE_OF_BOXES = 1024
"""NIH's boxes are in pixels of its 1024 by 1024 renderings, whatever size the images at hand have."""

TOLERANCE = 15 / SIDE_OF_BOXES
"""How far outside the box a hit may lie, as a share of the side: 15 pixels, as in the original game."""

_OTHER_NAMES = {"Infiltrate": "Infiltration"}
_GRID = 256
_PRIOR_GRID = 64


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
class BoxedMap:
    """A label's map of one image, compared with the label's boxes.

    `hit`: the highest point of the map lies in a box. `share_inside`: the part of the map's positive values within the
    boxes, 0 for a map without any. `centre_hit`: the image's centre lies in a box. `chance`: the share of the image in
    which a point would hit.
    """

    patient: str
    label: str
    boxes: tuple[Box, ...]
    hit: bool
    share_inside: float
    centre_hit: bool
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Localisation:
    """The results of one label, or of all labels together under "all".

    `rate`: hit rate of the pointing game; `centre_rate`, `mean_box_rate`: the same for the image's centre, and for the
    highest point of the mean box. `share_inside`: of the map; `flat_share`: of a flat map, which is the boxes' area;
    `mean_box_share`: of the mean box. The mean box of an image is drawn from the boxes of other patients with the same
    label; it is None where there are none. `rate_gain`, `share_gain`: differences from the mean box, paired.
    """

    images: int
    hits: int
    rate: Estimate | None
    chance: float
    centre_rate: Estimate | None
    mean_box_rate: Estimate | None
    rate_gain: Estimate | None
    share_inside: Estimate | None
    flat_share: float
    mean_box_share: Estimate | None
    share_gain: Estimate | None


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


def compare_with_boxes(image: str, patient: str, saliency: Iterable[SaliencyMap], boxes: Boxes) -> list[BoxedMap]:
    """Compare the map of every label that has boxes in this image."""
    boxes_of = boxes.get(image_key(image), {})
    maps = {entry.label: entry.values for entry in saliency if entry.label in boxes_of}
    compared = []
    for label, values in maps.items():
        drawn = boxes_of[label]
        x, y = _highest(values)
        compared.append(
            BoxedMap(
                patient=patient,
                label=label,
                boxes=drawn,
                hit=any(box.holds(x, y) for box in drawn),
                share_inside=_share_inside(values, drawn),
                centre_hit=any(box.holds(0.5, 0.5) for box in drawn),
                chance=min(1.0, sum(box.area for box in drawn)),
            )
        )
    return compared


def localisation(maps: Sequence[BoxedMap], *, rounds: int, seed: int) -> dict[str, Localisation]:
    """Return the results per label, and of all maps under "all", with intervals that respect patients."""
    if not maps:
        return {}
    resampler = Resampler(np.array([compared.patient for compared in maps]), rounds=rounds, seed=seed)
    of_label = np.array([compared.label for compared in maps])
    columns = {
        "hit": np.array([compared.hit for compared in maps], dtype=np.float64),
        "centre": np.array([compared.centre_hit for compared in maps], dtype=np.float64),
        "share": np.array([compared.share_inside for compared in maps]),
        **_mean_boxes(maps),
    }
    groups = {"all": np.ones(len(maps), dtype=bool)}
    groups |= {str(label): of_label == label for label in np.unique(of_label)}
    return {name: _result(maps, columns, rows, resampler) for name, rows in groups.items()}


def _result(
    maps: Sequence[BoxedMap], columns: dict[str, Values], rows: BoolArray, resampler: Resampler
) -> Localisation:
    drawn = {name: resampler.values(_mean_of(values[rows]), rows) for name, values in columns.items()}
    # A gain compares the images that have a mean box.
    gains = {
        name: resampler.values(_mean_of((columns[name] - columns[prior])[rows]), rows)
        for name, prior in (("hit", "mean_box_hit"), ("share", "mean_box_share"))
    }
    chosen = [compared for compared, is_chosen in zip(maps, rows, strict=True) if is_chosen]
    return Localisation(
        images=len(chosen),
        hits=sum(compared.hit for compared in chosen),
        rate=estimate_of(drawn["hit"]),
        chance=float(np.mean([compared.chance for compared in chosen])),
        centre_rate=estimate_of(drawn["centre"]),
        mean_box_rate=estimate_of(drawn["mean_box_hit"]),
        rate_gain=estimate_of(gains["hit"]),
        share_inside=estimate_of(drawn["share"]),
        flat_share=float(np.mean([_mask(compared.boxes, _PRIOR_GRID).mean() for compared in chosen])),
        mean_box_share=estimate_of(drawn["mean_box_share"]),
        share_gain=estimate_of(gains["share"]),
    )


def _mean_of(values: Values) -> Statistic:
    """Return the weighted mean of the values that are not NaN."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    return lambda weights: np.asarray(weights @ filled / (weights @ known.astype(np.float64)))


def _mean_boxes(maps: Sequence[BoxedMap]) -> dict[str, Values]:
    """Return, per map, the hit and the share inside of the mean box of other patients; NaN where there is none."""
    hits, shares = np.full(len(maps), np.nan), np.full(len(maps), np.nan)
    masks = [_mask(compared.boxes, _PRIOR_GRID) for compared in maps]
    for label in {compared.label for compared in maps}:
        places = [at for at, compared in enumerate(maps) if compared.label == label]
        for at in places:
            others = [masks[other] for other in places if maps[other].patient != maps[at].patient]
            if others:
                prior = np.mean(others, axis=0)
                x, y = _highest_of_prior(prior)
                hits[at] = any(box.holds(x, y) for box in maps[at].boxes)
                shares[at] = float((prior * masks[at]).sum() / prior.sum())
    return {"mean_box_hit": hits, "mean_box_share": shares}


def _highest_of_prior(prior: Values) -> tuple[float, float]:
    """Return (x, y) of the mean box's highest point; the blur takes the middle of a flat top."""
    blurred = cv2.GaussianBlur(prior, (0, 0), _PRIOR_GRID / 16)
    row, column = np.unravel_index(int(np.argmax(blurred)), blurred.shape)
    return (float(column) + 0.5) / _PRIOR_GRID, (float(row) + 0.5) / _PRIOR_GRID


def _mask(boxes: Sequence[Box], side: int) -> Values:
    """Return (side, side) how much of each cell lies in a box, from 0 to 1; overlapping boxes count once."""
    mask = np.zeros((side, side))
    for box in boxes:
        across = _covered(box.left, box.left + box.width, side)
        down = _covered(box.top, box.top + box.height, side)
        mask = np.maximum(mask, down[:, np.newaxis] * across)
    return mask


def _covered(start: float, end: float, side: int) -> Values:
    """Return (side,) the share of each of `side` equal cells of [0, 1] between start and end."""
    edges = np.linspace(0, 1, side + 1)
    return np.asarray(np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None) * side)


def _share_inside(values: FloatArray, boxes: Sequence[Box]) -> float:
    positive = np.maximum(_enlarged(values), 0.0).astype(np.float64)
    total = float(positive.sum())
    return float((positive * _mask(boxes, _GRID)).sum()) / total if total > 0 else 0.0


def _highest(values: FloatArray) -> tuple[float, float]:
    """Return (x, y), as shares of width and height, of the highest point of the map enlarged smoothly."""
    smooth = _enlarged(values)
    row, column = np.unravel_index(int(np.argmax(smooth)), smooth.shape)
    return (float(column) + 0.5) / _GRID, (float(row) + 0.5) / _GRID


def _enlarged(values: FloatArray) -> FloatArray:
    enlarged = cv2.resize(np.ascontiguousarray(values), (_GRID, _GRID), interpolation=cv2.INTER_CUBIC)
    return np.asarray(enlarged, dtype=np.float32)
