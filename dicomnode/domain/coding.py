"""Whether a code can be one of the scheme that it names: its form and, where the scheme has one, its check digit."""

import re
from collections.abc import Callable

from dicomnode.domain.finding import Code

PRIVATE_PREFIX = "99"
"""What the designator of a private coding scheme begins with. Source: PS3.16 8.2."""

# Verhoeff's tables: the dihedral group D5, and the permutation applied by position.
_D5 = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_PERMUTATION = "1576283094"

# Names by which people know a scheme, and those that PS3.16 has retired, with the designator to write.
_MISNAMED = {
    "SNOMED": "SCT", "SNOMED-CT": "SCT", "SNOMED CT": "SCT", "SNOMEDCT": "SCT", "SRT": "SCT", "SNM3": "SCT",
    "99SDM": "SCT", "DICOM": "DCM", "RADLEX RID": "RADLEX", "LOINC": "LN",
}  # fmt: skip


def fault_in(code: Code) -> str | None:
    """Return what keeps the code from being one of its scheme, or None; a scheme unknown here is believed."""
    for name, text, longest in (("value", code.value, 16), ("scheme", code.scheme, 16), ("meaning", code.meaning, 64)):
        if not text.strip() or len(text) > longest or "\\" in text or not text.isprintable():
            return f"{name} {text!r} is not a text of 1 to {longest} characters without backslash"
    scheme = code.scheme.strip().upper()
    if scheme in _MISNAMED:
        return f"{code.scheme!r} is not the designator that DICOM uses; write {_MISNAMED[scheme]!r}"
    form, has_form, check = _SCHEMES.get(code.scheme, ("", re.compile(".*"), _always))
    if not has_form.fullmatch(code.value):
        return f"{code.value!r} is no code of {code.scheme}: {form}"
    return None if check(code.value) else f"{code.value!r} is no code of {code.scheme}: its check digit is wrong"


def as_text(code: Code) -> str:
    """Return the code on one line, as HL7 version 2 writes coded elements: `value^meaning^scheme`."""
    return f"{code.value}^{code.meaning}^{code.scheme}"


def from_text(text: str) -> Code:
    """Read what `as_text` writes.

    Raises: ValueError, saying what is wrong with it.
    """
    parts = text.split("^")
    if len(parts) != 3:
        raise ValueError(f"{text!r} is not a code as value^meaning^scheme")
    code = Code(value=parts[0], meaning=parts[1], scheme=parts[2])
    if fault := fault_in(code):
        raise ValueError(fault)
    return code


def verhoeff_holds(digits: str) -> bool:
    """Tell whether the last digit is Verhoeff's check digit of the others. Source: SNOMED CT Release File, SCTID."""
    check = 0
    for position, character in enumerate(reversed(digits)):
        digit = int(character)
        for _ in range(position % 8):
            digit = int(_PERMUTATION[digit])
        check = int(_D5[check][digit])
    return check == 0


def luhn_holds(code: str) -> bool:
    """Tell whether the last digit is the check digit of LOINC: modulus 10. Source: LOINC Users' Guide, Appendix B."""
    digits = [int(character) for character in reversed(code.replace("-", ""))]
    return sum(digit if at % 2 == 0 else sum(divmod(2 * digit, 10)) for at, digit in enumerate(digits)) % 10 == 0


def _always(value: str) -> bool:
    del value
    return True


_SCHEMES: dict[str, tuple[str, re.Pattern[str], Callable[[str], bool]]] = {
    "SCT": (
        "6 to 16 digits whose last three but one are 00 or 10",
        re.compile(r"(?=[1-9][0-9]{5,15}$)[0-9]+[01]0[0-9]"),
        verhoeff_holds,
    ),
    "DCM": ("6 digits, or capitals for a modality", re.compile(r"[0-9]{6}|[A-Z][A-Z0-9_]+"), _always),
    "RADLEX": ("RID and a number", re.compile(r"RID[1-9][0-9]*"), _always),
    "LN": ("digits, a hyphen and a check digit", re.compile(r"[1-9][0-9]{0,6}-[0-9]"), luhn_holds),
    "UMLS": ("C and 7 digits", re.compile(r"C[0-9]{7}"), _always),
}
