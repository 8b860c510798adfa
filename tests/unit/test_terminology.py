"""Codes: no SNOMED CT identifier is a typing error, and every code fits the attributes it goes into."""

import re

import pytest
from highdicom.sr import CodedConcept
from pydicom.sr._concepts_dict import concepts

from dicomnode.domain.finding import Code
from dicomnode.domain.job import RejectionReason
from dicomnode.domain.terminology import NIH_TERMS
from dicomnode.results import codes

# Verhoeff's tables: the dihedral group D5, and the permutation applied by position.
_D5 = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 2, 3, 4, 0, 6, 7, 8, 9, 5],
    [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
    [3, 4, 0, 1, 2, 8, 9, 5, 6, 7],
    [4, 0, 1, 2, 3, 9, 5, 6, 7, 8],
    [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
    [6, 5, 9, 8, 7, 1, 0, 4, 3, 2],
    [7, 6, 5, 9, 8, 2, 1, 0, 4, 3],
    [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
]
_PERMUTATION = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]


def check_digit_holds(identifier: str) -> bool:
    """Source: SNOMED CT Technical Implementation Guide, 5.5 (check-digit)."""
    check = 0
    for position, character in enumerate(reversed(identifier)):
        digit = int(character)
        for _ in range(position % 8):
            digit = _PERMUTATION[digit]
        check = _D5[check][digit]
    return check == 0


def fixed_codes() -> list[Code]:
    found: list[CodedConcept] = []
    for value in vars(codes).values():
        if isinstance(value, CodedConcept):
            found.append(value)
        elif isinstance(value, dict):
            found.extend(entry for entry in value.values() if isinstance(entry, CodedConcept))
    return [Code(value=entry.value, scheme=entry.scheme_designator, meaning=entry.meaning) for entry in found]


ALL_CODES = [*(term.code for term in NIH_TERMS.values()), *(term.site for term in NIH_TERMS.values()), *fixed_codes()]


@pytest.mark.parametrize("invented", ["95436003", "129614006", "73122008", "78381009"])
def test_the_check_digit_unmasks_identifiers_that_circulate_in_public_code(invented: str) -> None:
    assert not check_digit_holds(invented)


def test_every_snomed_ct_identifier_has_a_valid_check_digit() -> None:
    identifiers = {code.value for code in ALL_CODES if code.scheme == "SCT"}
    assert len(identifiers) > 20
    assert [value for value in identifiers if not check_digit_holds(value)] == []


def test_every_code_fits_its_attributes() -> None:
    for code in ALL_CODES:
        assert 1 <= len(code.value) <= 16, code
        assert 1 <= len(code.scheme) <= 16, code
        assert 1 <= len(code.meaning) <= 64, code


def test_codes_of_the_standard_mean_what_the_standard_says() -> None:
    meanings: dict[tuple[str, str], set[str]] = {}
    for scheme, keywords in concepts.items():
        for entries in keywords.values():
            for value, (meaning, _) in entries.items():
                plain = re.sub(r" \([a-z ]+\)$", "", meaning)  # fully specified names end in "(attribute)" and so on
                meanings.setdefault((scheme, value), set()).add(plain.casefold())
    wrong = [
        code
        for code in ALL_CODES
        if (code.scheme, code.value) in meanings and code.meaning.casefold() not in meanings[code.scheme, code.value]
    ]
    assert wrong == []


def test_codes_of_dicom_itself_all_exist_in_it() -> None:
    known = {value for entries in concepts["DCM"].values() for value in entries}
    assert [code for code in ALL_CODES if code.scheme == "DCM" and code.value not in known] == []


def test_the_table_covers_the_labels_of_chest_xray_14_with_a_source_each() -> None:
    assert len(NIH_TERMS) == 14
    assert all(term.source for term in NIH_TERMS.values())
    assert len({(term.code.scheme, term.code.value) for term in NIH_TERMS.values()}) == 14


def test_every_reason_for_rejection_has_a_code_of_its_own() -> None:
    assert set(codes.REJECTION_REASONS) == set(RejectionReason)
    assert len({code.value for code in codes.REJECTION_REASONS.values()}) == len(RejectionReason)
