"""Annexes of the statement on the objects that the node creates: attributes, content tree, and codes.

Values are read from the node's own answers (`samples`). Where a value comes from is found by comparing answers in which
one thing was changed at a time.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_description, keyword_for_tag
from pydicom.multival import MultiValue
from pydicom.uid import UID

from dicomnode import __version__
from dicomnode.bundle.manifest import CodeEntry, LabelEntry, Manifest
from dicomnode.conformance.markdown import code, section, table
from dicomnode.conformance.samples import Sample, Samples, Variant
from dicomnode.domain.answer import ResultKind
from dicomnode.domain.finding import Code
from dicomnode.domain.terminology import ABNORMAL, NIH_TERMS, PRIVATE_SCHEME, entries
from dicomnode.results.modules import Place, place_of

Values = tuple[str, ...]
"""The values at one place of one object, in order; "" is an empty value, and no value at all means it is absent."""

_LONGEST_LIST = 20
_OF = {variant: variant for variant in Variant} | {Variant.SPARSE: Variant.SOURCE, Variant.BARE: Variant.SETTINGS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The values seen at one place: in the base answer, in each variant, and in other answers."""

    base: Values
    variants: Mapping[Variant, Values]
    others: tuple[Values, ...] = ()

    @property
    def presence(self) -> str:
        """Return ALWAYS, VNAP (value not always present), ANAP (attribute not always present) or EMPTY."""
        places = [self.base, *self.variants.values(), *self.others]
        if all(not any(values) for values in places):
            return "EMPTY"
        if not all(places):
            return "ANAP"
        return "ALWAYS" if all(any(values) for values in places) else "VNAP"

    def origin(self, *, copied: bool = False) -> str:
        """Return how the value arises; `copied`: it is the source image's own."""
        changed = list(dict.fromkeys(_OF[variant] for variant in Variant if self._differs(variant)))
        if not changed:
            return "FIXED"
        if changed == [Variant.SETTINGS]:
            return "CONFIG"
        if changed == [Variant.SOURCE]:
            return "COPY" if copied else "CALC from the source image"
        return f"AUTO from {_listed([variant.value for variant in changed])}"

    def distinct(self) -> str:
        """Return every value seen, once, or how many there are when they are too many to list."""
        found = dict.fromkeys(
            value for values in (self.base, *self.variants.values(), *self.others) for value in values if value
        )
        return "; ".join(found) if len(found) <= _LONGEST_LIST else f"{len(found)} values"

    def _differs(self, variant: Variant) -> bool:
        values = self.variants.get(variant, self.base)
        if _OF[variant] is variant:
            return values != self.base
        # What states little leaves values out; only a value of its own says where values come from.
        return any(value and value not in self.base for value in values)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


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
    contents = {
        variant: _ObjectContents.of(sample, kind)
        for variant, sample in (*samples.variants.items(), (None, samples.base), (_OTHER, samples.refusal))
        if kind in sample.results
    }
    elements: dict[Path, DataElement] = {}
    for entry in contents.values():
        elements = {**entry.elements, **elements}
    sop_class = str(samples.base.results[kind].SOPClassUID)
    places = _places(sop_class, elements)
    ordered = sorted(elements, key=lambda path: _tags(path, elements))
    return [_row(contents, path, elements[path], places[path]) for path in ordered]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ObjectContents:
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


def _row(
    contents: Mapping[str | None, _ObjectContents], path: Path, element: DataElement, place: Place | None
) -> AttributeRow:
    observed = Observed(
        base=contents[None].values.get(path, ()),
        variants={variant: contents[variant].values.get(path, ()) for variant in Variant if variant in contents},
        others=(contents[_OTHER].values.get(path, ()),) if _OTHER in contents else (),
    )
    origin = observed.origin(copied=len(path) == 1 and all(_copies(entry, path[0]) for entry in contents.values()))
    return AttributeRow(
        path=path,
        tag=f"({element.tag.group:04X},{element.tag.element:04X})",
        vr=str(element.VR),
        name=dictionary_description(element.tag),
        place=place,
        presence=observed.presence,
        origin=origin,
        value=_shown_value(element, observed) if origin == "FIXED" else "",
    )


def _copies(contents: _ObjectContents, keyword: str) -> bool:
    """Tell whether an object holds of an attribute exactly what its source image states, be it nothing."""
    return "".join(contents.values.get((keyword,), ())) == contents.stated.get(keyword, "")


def _shown_value(element: DataElement, observed: Observed) -> str:
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


Key = tuple[str, str, str]
"""Relationship, value type, concept name."""


@dataclass(slots=True, kw_only=True)
class _Node:
    values: dict[str, list[str]] = field(default_factory=dict)
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
    node.values.setdefault(answer, []).append(_value(item))
    node.parents[answer] = above
    for child in item.get("ContentSequence", []):
        _merge(node, answer, child, relationship=str(child.RelationshipType), above=len(node.values[answer]))


def _rows(node: _Node, key: Key, depth: int, above: dict[str, int]) -> Iterator[ContentRow]:
    values: dict[str, Values] = {answer: tuple(found) for answer, found in node.values.items()}
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
    return _content_code(names[0]) if names else ""


def _content_code(item: Dataset) -> str:
    return f'({item.CodeValue}, {item.CodingSchemeDesignator}, "{item.CodeMeaning}")'


def _value(item: Dataset) -> str:
    """Return the value of a content item as a person reads it."""
    kind = str(item.ValueType)
    if kind == "CODE":
        return _content_code(item.ConceptCodeSequence[0])
    if kind == "NUM":
        measured = item.MeasuredValueSequence[0]
        return f"{measured.NumericValue} {_content_code(measured.MeasurementUnitsCodeSequence[0])}"
    if kind == "IMAGE":
        return str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    if kind == "CONTAINER":
        template = item.get("ContentTemplateSequence")
        return f"TID {template[0].TemplateIdentifier}" if template else ""
    return str(item.get("TextValue") or item.get("UID") or item.get("GraphicType") or "")


_LEGEND = """\
Every row is read from objects that this version of the node made of synthetic studies. *Presence*: ALWAYS; VNAP, the
value is not always present; ANAP, the attribute is not always present; EMPTY. *Source*, found by changing one input at
a time: FIXED, always the value given; COPY, the source image's own value; CALC, calculated from the source image;
CONFIG, from the configuration; AUTO, generated from what is named: the source image, the configuration, the model, its
analysis of the image, or the time. A UID that is AUTO is derived: the same inputs give the same UID. *Module* and
*Type* are the standard's. An indented attribute stands in the items of the sequence above it."""

_TREE_LEGEND = """\
The tree of TID 1500, every kind of content item once. *Times*: how often it stands in each item above it. *Source* as
in Annex A. Where a code depends on the analysis or the image, the values seen are listed; Annex E has all codes."""


def objects_section(samples: Samples) -> str:
    """Return Annex A: one table for each kind of object."""
    kinds = [kind for kind in ResultKind if kind in samples.base.results]
    parts = (_object(f"A.{number}", samples, kind) for number, kind in enumerate(kinds, start=1))
    return section(2, "Annex A: Information Object Definitions", _LEGEND) + "".join(parts)


def content_section(samples: Samples) -> str:
    """Return Annex B: the report's content tree."""
    rows = (_content(row) for row in content_rows(samples))
    headings = ("Content item", "Relationship", "Value type", "Times", "Source", "Value")
    return section(2, "Annex B: Structured Report content encoding", _TREE_LEGEND, table(headings, rows))


def codes_section(manifest: Manifest) -> str:
    """Return Annex E: every code that the node's objects may hold, with the source that vouches for it."""
    findings = [_finding_row(label) for label in manifest.labels]
    labelled = {entry for term in NIH_TERMS.values() for entry in (term.code, term.site)}
    fixed = sorted(
        (entry.code.scheme, entry.code.value, entry.code.meaning, entry.source)
        for entry in entries()
        if entry.code not in labelled
    )
    return section(
        2,
        "Annex E: Code set usage",
        "*Provenance*: the context group or annex of DICOM PS3.16 that holds the code, else the fully specified name "
        "of the concept in SNOMED CT, or the vocabulary it is from. A code value of SNOMED CT ends in a check digit, "
        "which is verified.",
        f"Fixed codes. {code(PRIVATE_SCHEME)} is the node's own scheme; private schemes are identified in Coding "
        "Scheme Identification Sequence wherever one of their codes is used.",
        table(
            ("Code value", "Coding scheme", "Code meaning", "Provenance"),
            sorted(fixed, key=lambda row: (row[1], row[0])),
        ),
        f"Findings and finding sites of the shipped model, {manifest.name}; another bundle brings its own.",
        table(("Label", "Finding", "Provenance", "Finding Site", "Provenance"), findings),
    )


def _finding_row(label: LabelEntry) -> tuple[str, ...]:
    sources = {entry.code: entry.source for entry in entries()}
    finding = _code(label.code) or ABNORMAL.code
    site = _code(label.site)
    where = (_shown(site), sources.get(site, "")) if site else ("", "")
    return (label.name, _shown(finding), sources.get(finding, ""), *where)


def _object(number: str, samples: Samples, kind: ResultKind) -> str:
    rows = [_attribute(row) for row in attribute_rows(samples, kind)]
    headings = ("Attribute", "Tag", "VR", "Module", "Type", "Presence", "Source", "Value")
    name = samples.base.results[kind].SOPClassUID.name
    return section(3, f"{number} {name} ({code(kind.value)})", table(headings, rows))


def _attribute(row: AttributeRow) -> tuple[str, ...]:
    indent = "&gt; " * (len(row.path) - 1)
    module, kind = (row.place.module, row.place.type) if row.place else ("Standard Extended", "3")
    return f"{indent}{row.name}", row.tag, row.vr, module, kind, row.presence, row.origin, row.value


def _content(row: ContentRow) -> tuple[str, ...]:
    relationship, value_type, name = row.key
    indent = "&gt; " * row.depth
    return f"{indent}{name}", relationship.lower(), value_type, row.multiplicity, row.origin, row.value


def _code(entry: CodeEntry | None) -> Code | None:
    return None if entry is None else Code(value=entry.value, scheme=entry.scheme, meaning=entry.meaning)


def _shown(entry: Code) -> str:
    """Return a code as a person reads it."""
    return f'({entry.value}, {entry.scheme}, "{entry.meaning}")'
