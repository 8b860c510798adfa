"""Reads what the archive received, as any receiver would: the findings of the report, the picture of the heatmap."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from dicomnode.domain.terminology import PRESENCE, PROBABILITY

_TRACKING_IDENTIFIER, _MEASUREMENT_GROUP = "112039", "125007"  # PS3.16 Annex D


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """One finding as the report states it; `presence` in the report's own word."""

    label: str
    probability: float
    presence: str


def findings_in(file: Path) -> tuple[Reported, ...]:
    """Return the findings of a Structured Report, or none of any other object. Source: PS3.16 TID 1500."""
    return tuple(_reported(group) for group in _groups(dcmread(file)) if _items(group, PROBABILITY.code.value))


def picture_of(file: Path) -> Path | None:
    """Write a Secondary Capture as PNG beside its file, and return where; None of any other object."""
    dataset = dcmread(file)
    if dataset.SOPClassUID != SecondaryCaptureImageStorage:
        return None
    picture = BytesIO()
    Image.fromarray(dataset.pixel_array).save(picture, "PNG")
    target = file.with_suffix(".png")
    target.write_bytes(picture.getvalue())
    return target


def _groups(dataset: Dataset) -> Iterator[Dataset]:
    for item in dataset.get("ContentSequence", []):
        if _concept(item) == _MEASUREMENT_GROUP:
            yield item
        yield from _groups(item)


def _reported(group: Dataset) -> Reported:
    (probability,) = _items(group, PROBABILITY.code.value)
    return Reported(
        label=str(_items(group, _TRACKING_IDENTIFIER)[0].TextValue),
        probability=float(probability.MeasuredValueSequence[0].NumericValue),
        presence=str(_items(group, PRESENCE.code.value)[0].ConceptCodeSequence[0].CodeMeaning),
    )


def _items(group: Dataset, concept: str) -> list[Dataset]:
    return [item for item in group.get("ContentSequence", []) if _concept(item) == concept]


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].get("CodeValue", "")) if names else ""
