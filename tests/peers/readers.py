"""What independent programs read in a report: the findings, and the patient's name."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
from highdicom.sr import CodedConcept

from dicomnode.bundle.manifest import Manifest
from dicomnode.conformance.samples import FixedPredictor
from dicomnode.domain.finding import Finding
from dicomnode.inference.operating import findings_of
from dicomnode.results.presentation import by_evidence

_PROBABILITY = CodedConcept("122157", "DCM", "Probability")
_PRESENCE = CodedConcept("705057003", "SCT", "Presence")
_CODE = r'\((\S+?),(\w+),"(.*?)"\)'


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One finding as a reader shows it; the coded finding is (value, scheme, meaning)."""

    label: str
    code: tuple[str, str, str]
    site: str
    probability: float
    presence: str


def said(manifest: Manifest) -> list[Read]:
    """Return the findings of `FixedPredictor` with this manifest, in the report's order."""
    scores = FixedPredictor(manifest).scores()
    abnormality, *findings = findings_of(scores, manifest, manifest.default_operating_point)
    return [_read(finding) for finding in (abnormality, *by_evidence(findings))]


def _read(finding: Finding) -> Read:
    return Read(
        label=finding.label,
        code=(finding.code.value, finding.code.scheme, finding.code.meaning),
        site=finding.site.meaning if finding.site else "",
        probability=round(finding.probability, 4),
        presence=finding.presence.value,
    )


def by_highdicom(report: Path) -> list[Read]:
    """Read with highdicom's TID 1500 reader."""
    document = hd.sr.srread(report)
    found = []
    for group in document.content.get_image_measurement_groups():
        (measured,) = group.get_measurements(name=_PROBABILITY)
        (presence,) = group.get_qualitative_evaluations(name=_PRESENCE)
        code, (site, *_) = group.finding_type, [one.value.meaning for one in group.finding_sites] or [""]
        found.append(
            Read(
                label=group.tracking_identifier,
                code=(code.value, code.scheme_designator, code.meaning),
                site=site,
                probability=float(measured.value),
                presence=presence.value.meaning.lower(),
            )
        )
    return found


def by_dsrdump(text: str) -> list[Read]:
    """Read what DCMTK's dsrdump printed."""
    return [_group(part) for part in text.split('CONTAINER:(,,"Measurement Group")')[1:]]


def _group(text: str) -> Read:
    code = _only(rf'CODE:\(,,"Finding"\)={_CODE}', text)
    sites = re.findall(rf'CODE:\(,,"Finding Site"\)={_CODE}', text)
    return Read(
        label=_only(r'TEXT:\(,,"Tracking Identifier"\)="(.*?)"', text)[0],
        code=(code[0], code[1], code[2]),
        site=sites[0][2] if sites else "",
        probability=float(_only(r'NUM:\(,,"Probability"\)="(.*?)" \(1,UCUM,"no units"\)', text)[0]),
        presence=_only(rf'CODE:\(,,"Presence"\)={_CODE}', text)[2].lower(),
    )


def by_dsr2html(page: str) -> list[Read]:
    """Read the page that DCMTK's dsr2html made with the codes shown (`+Cc`)."""
    body = page.split("Qualitative Evaluations", maxsplit=1)[0].split("<h3>Measurement Group")[1:]
    return [_shown(html.unescape(re.sub(r"<[^>]*>", "", part))) for part in body]


def _shown(text: str) -> Read:
    """Read one group: name by name on lines of its own, then the finding, the probability and the presence."""
    finding = _only(r"^(?!Present|Absent|Undetermined|Measurement|.* = )(.+) \((\S+), (\w+)\)$", text)
    sites = re.findall(r"Finding Site \(\S+, SCT\) = (.+) \(\S+, SCT\)", text)
    return Read(
        label=_only(r'Tracking Identifier \(112039, DCM\) = "(.*)"', text)[0],
        code=(finding[1], finding[2], finding[0]),
        site=sites[0] if sites else "",
        probability=float(_only(r'^(\S+) 1 \(UCUM, "no units"\)', text)[0]),
        presence=_only(r"^(Present|Absent|Undetermined) \(\d+, SCT\)$", text)[0].lower(),
    )


def _only(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, f"nothing matches {pattern!r} in:\n{text}"
    return match.groups()
