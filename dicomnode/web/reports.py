"""A Structured Report as a tree of words, for a template."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from pydicom import Dataset, dcmread

from dicomnode.imaging.tags import items, number, text

_DEEPEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One content item: what it is, what it says, and what belongs to it."""

    name: str
    value: str
    items: tuple["Item", ...]


def read_report(part10: bytes) -> Item:
    """Return the content of a report that this node wrote."""
    return _item(dcmread(BytesIO(part10), stop_before_pixels=True), 0)


def _item(ds: Dataset, depth: int) -> Item:
    below = () if depth >= _DEEPEST else tuple(_items(ds, depth + 1))
    return Item(name=_meaning(ds, "ConceptNameCodeSequence"), value=_value(ds), items=below)


def _items(ds: Dataset, depth: int) -> Iterator[Item]:
    for entry in items(ds, "ContentSequence"):
        # Outlines of the whole image are for viewers that need a place to draw at.
        if text(entry, "ValueType") not in ("SCOORD", ""):
            yield _item(entry, depth)


def _value(ds: Dataset) -> str:
    match text(ds, "ValueType"):
        case "CODE":
            return _meaning(ds, "ConceptCodeSequence")
        case "NUM":
            measured = next(iter(items(ds, "MeasuredValueSequence")), Dataset())
            value = number(measured, "NumericValue")
            return "" if value is None else f"{value:g}"
        case "IMAGE":
            return text(next(iter(items(ds, "ReferencedSOPSequence")), Dataset()), "ReferencedSOPInstanceUID")
        case kind:
            return text(ds, {"TEXT": "TextValue", "UIDREF": "UID", "PNAME": "PersonName"}.get(kind, "TextValue"))


def _meaning(ds: Dataset, keyword: str) -> str:
    return text(next(iter(items(ds, keyword)), Dataset()), "CodeMeaning")
