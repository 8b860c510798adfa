"""Codes: none is a typing error or an invention, each is in the table once, and each fits where it goes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

import dicomnode
from dicomnode.domain import terminology
from dicomnode.domain.answer import RejectionReason
from dicomnode.domain.coding import fault_in, luhn_holds, verhoeff_holds
from dicomnode.domain.finding import Code, Presence
from dicomnode.domain.terminology import NIH_TERMS, Entry, entries
from dicomnode.results import codes

ENTRIES = entries()
CODES = [entry.code for entry in ENTRIES]
PACKAGE = Path(dicomnode.__file__).parent
TABLE, READ = PACKAGE / "domain" / "terminology.py", PACKAGE / "imaging" / "vocabulary.py"
"""Where codes that are written, and those that are read in source images, are stated."""


@pytest.mark.parametrize("invented", ["95436003", "129614006", "73122008", "78381009"])
def test_the_check_digit_unmasks_identifiers_that_circulate_in_public_code(invented: str) -> None:
    assert not verhoeff_holds(invented)
    assert "check digit" in str(fault_in(Code(value=invented, scheme="SCT", meaning="invented")))


def test_check_digits_are_those_of_the_standards_examples() -> None:
    assert verhoeff_holds("900000000000207008")  # the SNOMED CT core module
    assert verhoeff_holds("138875005")  # the root concept
    assert luhn_holds("10154-3")  # Logical Observation Identifiers: chief complaint
    assert not luhn_holds("10154-4")


def test_every_code_has_the_form_of_its_scheme() -> None:
    assert len(CODES) == 74
    assert {code.scheme for code in CODES} == {"DCM", "SCT", "RADLEX", "UMLS", "UCUM", "RFC5646", "99CXRNODE"}
    assert [(code, fault) for code in CODES if (fault := fault_in(code))] == []


def test_every_snomed_ct_identifier_read_in_source_images_has_a_valid_check_digit() -> None:
    listed = {word for text in strings_in(READ) for word in text.split() if re.fullmatch(r"[0-9]{6,18}", word)}
    assert len(listed) > 80
    assert [value for value in listed if not verhoeff_holds(value)] == []


@pytest.mark.parametrize(
    ("value", "scheme", "meaning", "fault"),
    [
        ("46621008", "SCT", "Atelectasis", "check digit"),
        ("46621017", "SCT", "a description, not a concept", "no code of SCT"),
        ("J98.11", "SCT", "Atelectasis", "no code of SCT"),
        ("28509", "RADLEX", "thickening", "RID and a number"),
        ("12112", "DCM", "Infiltrate", "6 digits"),
        ("24627-3", "LN", "Chest CT", "check digit"),
        ("46621007", "SNOMED-CT", "Atelectasis", "write 'SCT'"),
        ("D3-40000", "SRT", "Pleural disease", "write 'SCT'"),
        ("RID28509", "radlex rid", "thickening", "write 'RADLEX'"),
        ("", "SCT", "nothing", "1 to 16 characters"),
        ("A" * 17, "99SITE", "too long", "1 to 16 characters"),
        ("A\\B", "99SITE", "two values", "backslash"),
        ("A", "99SITE", "x" * 65, "1 to 64 characters"),
    ],
)
def test_a_code_that_cannot_be_one_of_its_scheme_is_faulted(value: str, scheme: str, meaning: str, fault: str) -> None:
    assert fault in str(fault_in(Code(value=value, scheme=scheme, meaning=meaning)))


@pytest.mark.parametrize(("value", "scheme"), [("24627-2", "LN"), ("J98.11", "I10"), ("TB", "99SITE"), ("DX", "DCM")])
def test_codes_of_other_schemes_and_of_ones_own_are_taken(value: str, scheme: str) -> None:
    assert fault_in(Code(value=value, scheme=scheme, meaning="Something")) is None


def test_codes_of_the_standard_mean_what_the_standard_says() -> None:
    wrong = [code for code in CODES if in_standard(code) and code.meaning.casefold() not in meanings_of(code)]
    assert wrong == []


def test_codes_of_dicom_itself_all_exist_in_it() -> None:
    assert [code for code in CODES if code.scheme == "DCM" and not in_standard(code)] == []


def test_the_source_of_every_code_holds_it() -> None:
    assert [entry for entry in ENTRIES if not is_vouched_for(entry)] == []


def test_a_source_that_does_not_hold_the_code_would_be_found() -> None:
    mass = NIH_TERMS["Mass"].code
    assert not is_vouched_for(Entry(code=mass, source="PS3.16 CID 6105"))
    assert not is_vouched_for(Entry(code=mass, source="SNOMED CT: Tumour (disorder)"))
    assert not is_vouched_for(Entry(code=mass, source="somewhere"))


def is_vouched_for(entry: Entry) -> bool:
    code = entry.code
    match entry.source.replace("PS3.16 ", "").split(" ", 1):
        case ["CID", number]:
            return int(number) in {cid for _, cids in in_standard(code) for cid in cids}
        case ["Annex", annex]:
            return bool(in_standard(code)) and {"D": "DCM", "O": "SCT"}[annex] == code.scheme
        case ["SNOMED", name]:
            return code.scheme == "SCT" and bool(re.fullmatch(rf"CT: {re.escape(code.meaning)}( \([a-z ]+\))+", name))
        case ["TID", number]:  # the template states a code of a vocabulary that DICOM has no table of
            return number in {"1500", "1602"} and code.scheme in {"UMLS", "UCUM"}
    return {"RFC 5646": "RFC5646", f"RadLex: {code.meaning}": "RADLEX", "this node": "99CXRNODE"}.get(
        entry.source
    ) == code.scheme


def in_standard(code: Code) -> list[tuple[str, list[int]]]:
    """Return the meanings of a code in PS3.16 with the context groups that hold it."""
    return [held[code.value] for held in concepts.get(code.scheme, {}).values() if code.value in held]


def meanings_of(code: Code) -> set[str]:
    # Fully specified names end in "(attribute)" and so on.
    return {re.sub(r" \([a-z ]+\)$", "", meaning).casefold() for meaning, _ in in_standard(code)}


def test_the_table_covers_the_labels_of_chest_xray_14() -> None:
    assert len({(term.code.scheme, term.code.value) for term in NIH_TERMS.values()}) == len(NIH_TERMS) == 14
    assert {code for term in NIH_TERMS.values() for code in (term.code, term.site)} <= set(CODES)


def test_no_code_stands_in_the_table_twice() -> None:
    assert len({(code.scheme, code.value) for code in CODES}) == len(CODES)


def test_every_reason_for_rejection_has_a_code_of_its_own() -> None:
    assert set(terminology.REJECTION_REASONS) == set(codes.REJECTION_REASONS) == set(RejectionReason)
    assert len({entry.code.value for entry in terminology.REJECTION_REASONS.values()}) == len(RejectionReason)
    assert set(codes.PRESENCE_VALUES) == set(Presence)


def sources() -> list[Path]:
    return [path for root in (PACKAGE, PACKAGE.parent / "modeling") for path in sorted(root.rglob("*.py"))]


def strings_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_other_module_states_a_code() -> None:
    """A code cannot be stated without its value; short ones, such as a modality's, are words of other things too."""
    values = {code.value for code in CODES if len(code.value) > 4 and code.scheme != "99CXRNODE"}
    stated = {
        (path.name, text)
        for path in sources()
        if path not in {TABLE, READ}
        for text in strings_in(path)
        if text in values
    }
    assert len(values) > 40
    assert stated == set()


def test_every_code_is_used() -> None:
    named = {name for name, value in vars(terminology).items() if isinstance(value, Entry)}
    inside = re.findall(r"\b[A-Z_]{3,}\b", TABLE.read_text(encoding="utf-8"))
    elsewhere = "\n".join(path.read_text(encoding="utf-8") for path in sources() if path != TABLE)
    assert [name for name in named if inside.count(name) < 2 and not re.search(rf"\b{name}\b", elsewhere)] == []
    written = "\n".join(path.read_text(encoding="utf-8") for path in sources() if path.name != "codes.py")
    constants = [name for name in vars(codes) if name.isupper()]
    assert len(constants) > 30
    assert [name for name in constants if f"codes.{name}" not in written] == []
