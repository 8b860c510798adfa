"""Annexes: the objects that the node creates, attribute by attribute, the content tree, and the codes."""

from dicomnode.bundle.manifest import CodeEntry, LabelEntry, Manifest
from dicomnode.conformance.attributes import AttributeRow, attribute_rows
from dicomnode.conformance.content import ContentRow, content_rows
from dicomnode.conformance.markdown import code, section, table
from dicomnode.conformance.samples import Samples
from dicomnode.domain.finding import Code
from dicomnode.domain.job import ResultKind
from dicomnode.domain.terminology import ABNORMAL, NIH_TERMS, PRIVATE_SCHEME, entries

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
