"""Annexes: the objects that the node creates, attribute by attribute, the content tree, and the codes."""

from collections.abc import Iterator

from pydicom import Dataset

from dicomnode.bundle.manifest import CodeEntry, Manifest
from dicomnode.conformance.attributes import AttributeRow, attribute_rows
from dicomnode.conformance.content import ContentRow, content_rows
from dicomnode.conformance.markdown import code, section, table
from dicomnode.conformance.samples import Samples
from dicomnode.domain.finding import Code
from dicomnode.domain.job import ResultKind
from dicomnode.inference.operating import ABNORMALITY_CODE
from dicomnode.results import codes

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
    """Return Annex E: every code that the node's objects may hold."""
    headings = ("Code value", "Coding scheme", "Code meaning")
    fixed = sorted(set(_fixed_codes()), key=lambda row: (row[1], row[0]))
    findings = [(label.name, _of(label.code) or _of(ABNORMALITY_CODE), _of(label.site)) for label in manifest.labels]
    return section(
        2,
        "Annex E: Code set usage",
        f"Fixed codes. {code(codes.PRIVATE_SCHEME)} is the node's own scheme, identified in Coding Scheme "
        "Identification Sequence wherever one of its codes is used.",
        table(headings, fixed),
        f"Findings and finding sites of the shipped model, {manifest.name}; another bundle brings its own.",
        table(("Label", "Finding", "Finding Site"), findings),
    )


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


def _fixed_codes() -> Iterator[tuple[str, str, str]]:
    for value in vars(codes).values():
        entries = value.values() if isinstance(value, dict) else [value]
        for entry in entries:
            if isinstance(entry, Dataset):
                yield str(entry.CodeValue), str(entry.CodingSchemeDesignator), str(entry.CodeMeaning)


def _of(entry: Code | CodeEntry | None) -> str:
    """Return a code as a person reads it; nothing where there is none."""
    return "" if entry is None else f'({entry.value}, {entry.scheme}, "{entry.meaning}")'
