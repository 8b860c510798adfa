"""The content tree of the report as a template: every kind of content item once, where it stands."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pydicom import Dataset

from dicomnode.conformance.origins import Observed, Values
from dicomnode.conformance.samples import Samples, Variant
from dicomnode.domain.job import ResultKind

Key = tuple[str, str, str]
"""Relationship, value type, concept name."""


@dataclass(slots=True, kw_only=True)
class _Node:
    seen: dict[str, list[str]] = field(default_factory=dict)
    parents: dict[str, int] = field(default_factory=dict)
    children: dict[Key, "_Node"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRow:
    """One kind of content item; `depth` is 0 for the root, `multiplicity` counts it in each item above it."""

    depth: int
    key: Key
    multiplicity: str
    origin: str
    value: str


def content_rows(samples: Samples) -> list[ContentRow]:
    """Return the report's content items: those of all answers together, in the order of the tree."""
    kind = ResultKind.STRUCTURED_REPORT
    answers = {"base": samples.base, **{v.value: s for v, s in samples.variants.items()}, "refusal": samples.refusal}
    root = _Node()
    for name, sample in answers.items():
        _merge(root, name, sample.results[kind], relationship="", above=1)
    ((key, top),) = root.children.items()
    return list(_rows(top, key, 0, dict.fromkeys(answers, 1)))


def _merge(parent: _Node, answer: str, item: Dataset, *, relationship: str, above: int) -> None:
    """Add one content item of an answer, and all below it, to the tree."""
    key = (relationship, str(item.ValueType), _name(item))
    node = parent.children.setdefault(key, _Node())
    node.seen.setdefault(answer, []).append(_value(item))
    node.parents[answer] = above
    for child in item.get("ContentSequence", []):
        _merge(node, answer, child, relationship=str(child.RelationshipType), above=len(node.seen[answer]))


def _rows(node: _Node, key: Key, depth: int, above: dict[str, int]) -> Iterator[ContentRow]:
    values: dict[str, Values] = {answer: tuple(found) for answer, found in node.seen.items()}
    base = values.get("base", ())
    observed = Observed(
        base=base,
        variants={variant: _once(values.get(variant.value, ()), base) for variant in Variant},
        others=(values.get("refusal", ()),),
    )
    origin = observed.origin()
    shown = observed.distinct() if origin == "FIXED" or key[1] in {"CODE", "CONTAINER"} else ""
    yield ContentRow(depth=depth, key=key, multiplicity=_multiplicity(values, above), origin=origin, value=shown)
    counts = {answer: len(found) for answer, found in values.items()}
    for below, child in node.children.items():
        yield from _rows(child, below, depth + 1, counts)


def _once(values: Values, base: Values) -> Values:
    """Return the base for its repetitions, as more images make them: how often an item stands is told apart."""
    return base if base and values == base * (len(values) // len(base)) and values else values


def _multiplicity(values: dict[str, Values], above: dict[str, int]) -> str:
    """Return how often the item stands in each item above it: `1`, `0-1`, `1-n` or `0-n`."""
    often = [len(values.get(answer, ())) / count for answer, count in above.items()]
    least = "1" if min(often) >= 1 else "0"
    most = "1" if max(often) <= 1 else "n"
    return "1" if least == most else f"{least}-{most}"


def _name(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return _code(names[0]) if names else ""


def _code(item: Dataset) -> str:
    return f'({item.CodeValue}, {item.CodingSchemeDesignator}, "{item.CodeMeaning}")'


def _value(item: Dataset) -> str:
    """Return the value of a content item as a person reads it."""
    kind = str(item.ValueType)
    if kind == "CODE":
        return _code(item.ConceptCodeSequence[0])
    if kind == "NUM":
        measured = item.MeasuredValueSequence[0]
        return f"{measured.NumericValue} {_code(measured.MeasurementUnitsCodeSequence[0])}"
    if kind == "IMAGE":
        return str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    if kind == "CONTAINER":
        template = item.get("ContentTemplateSequence")
        return f"TID {template[0].TemplateIdentifier}" if template else ""
    return str(item.get("TextValue") or item.get("UID") or item.get("GraphicType") or "")
