"""The attributes of a kind of object, one row each, read from the node's own answers. The content tree is apart."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_description, keyword_for_tag
from pydicom.multival import MultiValue
from pydicom.uid import UID

from dicomnode import __version__
from dicomnode.conformance.origins import Observed, Values
from dicomnode.conformance.samples import Sample, Samples, Variant
from dicomnode.domain.job import ResultKind
from dicomnode.results.modules import Place, place_of

Path = tuple[str, ...]

_BULK = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_LONGEST_BULK = 16
_OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeRow:
    """One attribute of a kind of object. `path` holds the keywords of the sequences it stands in, and its own."""

    path: Path
    tag: str
    vr: str
    name: str
    place: Place | None
    presence: str
    origin: str
    value: str


def attribute_rows(samples: Samples, kind: ResultKind) -> list[AttributeRow]:
    """Return the attributes of this kind of object in the order of the data set."""
    held = {
        variant: _Held.of(sample, kind)
        for variant, sample in (*samples.variants.items(), (None, samples.base), (_OTHER, samples.refusal))
        if kind in sample.results
    }
    elements: dict[Path, DataElement] = {}
    for entry in held.values():
        elements = {**entry.elements, **elements}
    sop_class = str(samples.base.results[kind].SOPClassUID)
    places = _places(sop_class, elements)
    ordered = sorted(elements, key=lambda path: _tags(path, elements))
    return [_row(held, path, elements[path], places[path]) for path in ordered]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What one answer's object holds by path: the first element, and the values of all; and what its source states."""

    elements: Mapping[Path, DataElement]
    values: Mapping[Path, Values]
    stated: Mapping[str, str]

    @classmethod
    def of(cls, sample: Sample, kind: ResultKind) -> Self:
        elements: dict[Path, DataElement] = {}
        values: dict[Path, Values] = {}
        for path, element in _walk(sample.results[kind]):
            elements.setdefault(path, element)
            values[path] = (*values.get(path, ()), _text(element))
        stated = {element.keyword: _text(element) for element in sample.source if element.keyword != "PixelData"}
        return cls(elements=elements, values=values, stated=stated)


def _row(held: Mapping[str | None, _Held], path: Path, element: DataElement, place: Place | None) -> AttributeRow:
    observed = Observed(
        base=held[None].values.get(path, ()),
        variants={variant: held[variant].values.get(path, ()) for variant in Variant if variant in held},
        others=(held[_OTHER].values.get(path, ()),) if _OTHER in held else (),
    )
    origin = observed.origin(copied=len(path) == 1 and all(_copies(entry, path[0]) for entry in held.values()))
    return AttributeRow(
        path=path,
        tag=f"({element.tag.group:04X},{element.tag.element:04X})",
        vr=str(element.VR),
        name=dictionary_description(element.tag),
        place=place,
        presence=observed.presence,
        origin=origin,
        value=_shown(element, observed) if origin == "FIXED" else "",
    )


def _copies(held: _Held, keyword: str) -> bool:
    """Tell whether an object holds of an attribute exactly what its source image states, be it nothing."""
    return "".join(held.values.get((keyword,), ())) == held.stated.get(keyword, "")


def _shown(element: DataElement, observed: Observed) -> str:
    if element.VR in _BULK and len(element.value or b"") > _LONGEST_BULK:
        return ""
    value = observed.distinct()
    return "the software's version" if value == __version__ else value


def _walk(ds: Dataset, above: Path = ()) -> Iterator[tuple[Path, DataElement]]:
    for element in ds:
        path = (*above, keyword_for_tag(element.tag))
        if element.keyword == "ContentSequence":
            continue
        yield path, element
        if element.VR == "SQ":
            for item in element.value:
                yield from _walk(item, path)


def _tags(path: Path, elements: dict[Path, DataElement]) -> list[int]:
    return [int(elements[path[: depth + 1]].tag) for depth in range(len(path))]


def _places(sop_class: str, elements: dict[Path, DataElement]) -> dict[Path, Place | None]:
    found: dict[Path, Place | None] = {}
    for path in sorted(elements, key=len):
        enclosing = found.get(path[:-1])
        found[path] = place_of(sop_class, path, enclosing=enclosing.module if enclosing else "")
    return found


def _text(element: DataElement) -> str:
    """Return a value as a person reads it; of bulk data its digest, which only serves to compare."""
    value = element.value
    if element.VR == "SQ":
        return f"{len(value)} items" if len(value) else ""
    if isinstance(value, bytes):
        return value.hex(" ") if len(value) <= _LONGEST_BULK else hashlib.sha256(value).hexdigest()
    if value is None:
        return ""
    values = value if isinstance(value, MultiValue) else [value]
    return "\\".join(_one(entry) for entry in values)


def _one(value: object) -> str:
    return f"{value.name} ({value})" if isinstance(value, UID) and value.name != value else str(value)
