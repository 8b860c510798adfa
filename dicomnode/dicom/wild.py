"""Reading attributes of objects as they are found in the wild: absent, empty, repeated, of the wrong form.

No function here raises for anything a peer can send: what cannot be understood reads as absent.
"""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import pydicom.charset
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pydicom.valuerep import PersonName

# What pydicom raises on values it cannot convert, decode or look up.
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError, ArithmeticError)

# Escape sequences that pydicom leaves in decoded text (ISO 2022: intermediates, then final), and control characters.
# Those above ASCII stay: they are letters of a character set that nobody declared, and the archive has them too.
_NO_TEXT = re.compile(r"\x1b[ -/]*[0-~]|[\x00-\x1f\x7f]")

UTF_8 = "ISO_IR 192"
_DEFAULT_REPERTOIRE = {"", "ISO_IR 6", "ISO 2022 IR 6"}
# Some devices name these alone, though they only ever extend another (PS3.3 C.12.1.1.2).
_MULTI_BYTE = {"ISO 2022 IR 58", "ISO 2022 IR 87", "ISO 2022 IR 149", "ISO 2022 IR 159"}

LOSSY_METHODS = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}
"""Transfer syntaxes that may lose information, with the method's defined term (PS3.3 C.7.6.1.1.5.1).

JPEG 2000 and HTJ2K may also be reversible; an object that says `00` of itself is believed.
"""


def texts(ds: Dataset, keyword: str) -> list[str]:
    """Return the values of an attribute as stripped, non-empty strings."""
    return [entry for entry in (_strip(value) for value in _values(ds, keyword)) if entry]


def text(ds: Dataset, keyword: str) -> str:
    """Return the attribute as one string, several values joined as they were encoded, or "" when absent."""
    return "\\".join(texts(ds, keyword))


def code_string(ds: Dataset, keyword: str) -> str | None:
    """Return the first value as a well-formed code string (CS), or None."""
    found = next(iter(texts(ds, keyword)), "").upper()
    return found if re.fullmatch(r"[A-Z0-9_ ]{1,16}", found) else None


def numbers(ds: Dataset, keyword: str) -> list[float]:
    """Return the values as finite numbers; [] when any is none."""
    try:
        found = [float(entry) for entry in texts(ds, keyword)]
    except ValueError:
        return []
    return found if all(math.isfinite(value) for value in found) else []


def integer(ds: Dataset, keyword: str) -> int | None:
    """Return the first value as a positive integer, or None."""
    found = numbers(ds, keyword)
    return int(found[0]) if found and found[0] >= 1 else None


def compression_ratio(ds: Dataset) -> float | None:
    """Return uncompressed over compressed size of encapsulated pixel data, or None when it is not encapsulated."""
    syntax = getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None or not UID(syntax).is_encapsulated:
        return None
    shape = [integer(ds, keyword) for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    compressed = len(ds.get("PixelData", b"") or b"")
    if not compressed or None in shape:
        return None
    return max(1.0, math.prod(entry for entry in shape if entry) / 8 / compressed)


def clean_identity(ds: Dataset) -> Dataset:
    """Return the Patient, General Study and Patient Study attributes fit for a new object.

    Names and identifiers stay as they are even when over-long: results that the archive cannot match to the patient
    or order are worse than a length that its own study already has. Other values are dropped unless well formed.
    Type 2 attributes are always there, empty if need be. Source: PS3.3 C.7.1.1, C.7.2.1, C.7.2.2.
    """
    clean = Dataset()
    for keyword, (cleaner, required) in _IDENTITY.items():
        value = cleaner(text(ds, keyword))
        if value or required:
            put(clean, keyword, value)
    if "PatientIdentityRemoved" not in clean:
        clean.pop("DeidentificationMethod", None)
    elif clean.PatientIdentityRemoved == "YES" and "DeidentificationMethod" not in clean:
        clean.DeidentificationMethod = "not stated by the source image"  # type 1C
    return clean


def put(ds: Dataset, keyword: str, value: Any) -> None:
    """Set an attribute without pydicom's check of the value's form."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise AttributeError(f"{keyword} is not a DICOM keyword")
    ds.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))


def character_set(ds: Dataset, identity: Dataset) -> tuple[str, ...]:
    """Return the Specific Character Set in which the identity is to be written; () for the default repertoire.

    The source's own, where it is known and its texts survive it; UTF-8 otherwise.
    """
    declared = tuple(_strip(value) for value in _values(ds, "SpecificCharacterSet"))
    if declared[:1] and declared[0] in _MULTI_BYTE:
        declared = ("", *declared)
    strings = non_ascii(identity)
    known = all(term in pydicom.charset.python_encoding for term in declared)
    if known and survives(strings, declared):
        return declared if any(declared) else ()
    return (UTF_8,) if strings else ()


def non_ascii(ds: Dataset) -> list[tuple[str, bool]]:
    """Return every string outside ASCII anywhere in the data set, and whether it is a person's name."""
    found: list[tuple[str, bool]] = []
    for element in ds.iterall():
        if element.VR in {"LO", "LT", "PN", "SH", "ST", "UC", "UT"} and not element.is_empty:
            values = element.value if isinstance(element.value, (list, MultiValue)) else [element.value]
            found.extend((str(value), element.VR == "PN") for value in values if not str(value).isascii())
    return found


def survives(strings: Sequence[tuple[str, bool]], terms: Sequence[str]) -> bool:
    """Tell whether the strings can be written in, and read back from, these character sets."""
    # pydicom takes the default repertoire for Latin-1; it is ASCII.
    latin_1_would_be_undeclared = not terms or terms[0] in _DEFAULT_REPERTOIRE
    if latin_1_would_be_undeclared and any("\x80" <= c <= "\xff" for value, _ in strings for c in value):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of each character it replaces; here that is the answer
        try:
            encodings = pydicom.charset.convert_encodings(list(terms))
            return all(_round_trip(value, encodings, is_name=is_name) == value for value, is_name in strings)
        except _MALFORMED:
            return False


def _round_trip(value: str, encodings: list[str], *, is_name: bool) -> str:
    if is_name:
        return str(PersonName(PersonName(value).encode(encodings), encodings))
    encoded = pydicom.charset.encode_string(value, encodings)
    return pydicom.charset.decode_bytes(encoded, encodings, set())


def _values(ds: Dataset, keyword: str) -> list[Any]:
    try:
        value = ds.get(keyword)
        if value is None:
            return []
        return list(value) if isinstance(value, (list, tuple, MultiValue)) else [value]
    except _MALFORMED:
        return []


def _strip(value: Any) -> str:
    try:
        found = str(value)
    except _MALFORMED:
        return ""
    return _NO_TEXT.sub("", found).strip(" ")


def _verbatim(value: str) -> str:
    return value


def _up_to_64(value: str) -> str:
    return value.replace("\\", " ")[:64].strip()


def _date(value: str) -> str:
    digits = re.sub(r"[.\-/]", "", value)  # ACR-NEMA wrote YYYY.MM.DD
    try:
        return date.fromisoformat(digits).strftime("%Y%m%d") if re.fullmatch(r"[0-9]{8}", digits) else ""
    except ValueError:
        return ""


def _time(value: str) -> str:
    compact = value.replace(":", "")
    form = r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9]|60)?)?"
    return compact if re.fullmatch(rf"{form}|([01][0-9]|2[0-3])[0-5][0-9][0-5][0-9]\.[0-9]{{1,6}}", compact) else ""


def _sex(value: str) -> str:
    return value.upper() if value.upper() in {"M", "F", "O"} else ""


def _age(value: str) -> str:
    return value.upper() if re.fullmatch(r"[0-9]{3}[DWMY]", value.upper()) else ""


def _decimal(value: str) -> str:
    return value if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) else ""


def _yes_or_no(value: str) -> str:
    return value.upper() if value.upper() in {"YES", "NO"} else ""


_IDENTITY: dict[str, tuple[Callable[[str], str], bool]] = {
    "PatientName": (_verbatim, True),
    "PatientID": (_verbatim, True),
    "IssuerOfPatientID": (_verbatim, False),
    "PatientBirthDate": (_date, True),
    "PatientSex": (_sex, True),
    "PatientIdentityRemoved": (_yes_or_no, False),
    "DeidentificationMethod": (_up_to_64, False),
    "StudyInstanceUID": (_verbatim, True),
    "StudyDate": (_date, True),
    "StudyTime": (_time, True),
    "ReferringPhysicianName": (_verbatim, True),
    "StudyID": (_verbatim, True),
    "AccessionNumber": (_verbatim, True),
    "StudyDescription": (_up_to_64, False),
    "PatientAge": (_age, False),
    "PatientSize": (_decimal, False),
    "PatientWeight": (_decimal, False),
}
