"""In which character set the texts of an object really are, when it does not say so, or says so wrongly.

Many devices write names in a character set that they do not declare. Read by the letter those names are lost, and with
them the match to the archive's patient. The bytes themselves give it away: the escape sequences of ISO 2022 name their
sets, and a text that happens to be valid UTF-8 is UTF-8. Source: PS3.5 6.1, PS3.3 C.12.1.1.2.
"""

import re
from collections.abc import Collection, Iterator, Mapping

import pydicom.charset
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from dicomnode.dicom.hostile import HOSTILE_DATA_RAISES, quiet

Terms = tuple[str, ...]
"""The values of Specific Character Set; () where it is absent."""

UTF_8, LATIN_1 = "ISO_IR 192", "ISO_IR 100"
_DEFAULT_REPERTOIRE = {"", "ISO_IR 6", "ISO 2022 IR 6"}
# Some devices name these alone, though they only ever extend another (PS3.3 C.12.1.1.2).
_MULTI_BYTE = {"ISO 2022 IR 58", "ISO 2022 IR 87", "ISO 2022 IR 149", "ISO 2022 IR 159"}
_UNICODE = {UTF_8, "GB18030", "GBK"}
_NAME = "PatientName"
_JUDGED_BY = (
    _NAME, "ReferringPhysicianName", "PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID", "StudyDescription"
)  # fmt: skip
"""The texts that results take over."""

_ESCAPE, _ESCAPED = re.compile(rb"\x1b[ -/]*[0-~]"), re.compile(rb"\x1b[^\x1b]*")
_LOST, _LOST_OR_CONTROL = re.compile("[\x1b\ufffd]"), re.compile("[\x1b\ufffd\x80-\x9f]")
_JIS_ROMAN, _ASCII = b"\x1b(J", b"\x1b(B"
# pydicom decodes these code elements, but leaves the escape sequence in the text.
_GB_2312, _KEPT_ESCAPE = "ISO 2022 IR 58", "\x1b$)A"
_KNOWN = pydicom.charset.python_encoding
_ANNOUNCED = {
    escape: next(term for term, known in _KNOWN.items() if known == encoding and term.startswith("ISO 2022 IR"))
    for escape, encoding in pydicom.charset.CODES_TO_ENCODINGS.items()
}


def correct_character_set(ds: Dataset) -> bool:
    """Make Specific Character Set say what the texts' bytes are, and tell whether it did not.

    Nothing of `ds` may be decoded yet.

    An object whose texts can be read as declared stays as it is. Otherwise they are in the character sets that their
    escape sequences announce, else in UTF-8 if they are valid UTF-8, else in Latin-1, in which no byte is lost.
    """
    with quiet():
        declared = declared_terms(ds)
        texts = _raw_texts(ds)
        actual = _actual(texts, tuple(_canonical(term) for term in declared)) if texts else declared
        if actual == declared:
            return False
        ds.SpecificCharacterSet = list(actual) if len(actual) > 1 else "".join(actual)
        encodings = pydicom.charset.convert_encodings(list(actual))
        implicit_vr, little_endian = ds.original_encoding
        ds.set_original_encoding(implicit_vr, little_endian, encodings)
        return True


def writable_terms(declared: Terms, strings: Collection[tuple[str, bool]]) -> Terms:
    """Return the character set in which strings outside ASCII are to be written; () for the default repertoire.

    The source's own, where it is known and the strings survive it; UTF-8 otherwise.
    `strings`: each with whether it is a person's name.
    """
    if declared[:1] and declared[0] in _MULTI_BYTE:
        declared = ("", *declared)
    if all(term in _KNOWN for term in declared) and survive(strings, declared):
        return declared if any(declared) else ()
    return (UTF_8,) if strings else ()


def survive(strings: Collection[tuple[str, bool]], terms: Terms) -> bool:
    """Tell whether strings can be written in, and read back from, these character sets."""
    # pydicom takes the default repertoire for Latin-1; it is ASCII.
    latin_1_would_be_undeclared = not terms or terms[0] in _DEFAULT_REPERTOIRE
    if latin_1_would_be_undeclared and any("\x80" <= c <= "\xff" for value, _ in strings for c in value):
        return False
    with quiet():  # pydicom warns of each character it replaces; here that is the answer
        try:
            encodings = pydicom.charset.convert_encodings(list(terms))
            return all(_round_trip(value, encodings, is_name=is_name) == value for value, is_name in strings)
        except HOSTILE_DATA_RAISES:
            return False


def _round_trip(value: str, encodings: list[str], *, is_name: bool) -> str:
    if is_name:
        return str(PersonName(PersonName(value).encode(encodings), encodings))
    encoded = pydicom.charset.encode_string(value, encodings)
    return pydicom.charset.decode_bytes(encoded, encodings, set())


def declared_terms(ds: Dataset) -> Terms:
    """Return the values of Specific Character Set."""
    try:
        value = ds.get("SpecificCharacterSet")
    except HOSTILE_DATA_RAISES:
        return ()
    listed = value if isinstance(value, MultiValue) else [value or ""]
    return tuple(str(term or "").strip(" \0") for term in listed) if value else ()


def _raw_texts(ds: Dataset) -> dict[str, bytes]:
    """Return the bytes of the texts that results take over, those outside ASCII and with escape sequences only."""
    found: dict[str, bytes] = {}
    for keyword in _JUDGED_BY:
        raw = ds.get_item(tag_for_keyword(keyword) or 0)
        if isinstance(raw, RawDataElement) and raw.value and (not raw.value.isascii() or b"\x1b" in raw.value):
            found[keyword] = raw.value.replace(_JIS_ROMAN, _ASCII)
    return found


def _actual(texts: Mapping[str, bytes], declared: Terms) -> Terms:
    """Return the first character sets in which every text can be read, or at least the patient's name."""
    candidates = list(_candidates(texts.values(), declared))
    name = {keyword: raw for keyword, raw in texts.items() if keyword == _NAME}
    for judged in (texts, name):
        for terms in candidates if judged else ():
            if all(_is_legible(raw, terms, is_name=keyword.endswith("Name")) for keyword, raw in judged.items()):
                return terms
    return (LATIN_1,)


def _candidates(texts: Collection[bytes], declared: Terms) -> Iterator[Terms]:
    if all(term in _KNOWN for term in declared) and _may_stand_together(declared):
        yield declared
    escapes = {escape for raw in texts for escape in _ESCAPE.findall(raw)}
    announced = sorted({_ANNOUNCED.get(escape, "") for escape in escapes} - _DEFAULT_REPERTOIRE)
    if announced:
        yield ("", *announced)
        first = next(iter(declared), "").replace("ISO_IR", "ISO 2022 IR")
        if first in _KNOWN and first not in announced:
            yield (first, *announced)
    yield (UTF_8,)


def _is_legible(raw: bytes, terms: Terms, *, is_name: bool) -> bool:
    """Tell whether the bytes are text in these character sets: nothing undeclared, nothing left over, nothing lost."""
    if (not terms or terms[0] in _DEFAULT_REPERTOIRE) and not _ESCAPED.sub(b"", raw).isascii():
        return False
    encodings = pydicom.charset.convert_encodings(list(terms))
    try:
        text = str(PersonName(raw, encodings)) if is_name else pydicom.charset.decode_bytes(raw, encodings, set())
    except HOSTILE_DATA_RAISES:
        return False
    text = text.replace(_KEPT_ESCAPE, "") if _GB_2312 in terms else text
    return not (_LOST if set(terms) & _UNICODE else _LOST_OR_CONTROL).search(text)


def _canonical(term: str) -> str:
    """Undo the common misspellings of defined terms: `ISO IR 100`, `iso-ir-100`, `ISO_IR_100`, `ISO_IR 149`."""
    folded = re.sub(r"[-_ ]+", " ", term.upper())
    single = re.sub(r"^ISO IR (?=\d)", "ISO_IR ", folded)
    extension = single.replace("ISO_IR", "ISO 2022 IR")
    return extension if single not in _KNOWN and extension in _KNOWN else single


def _may_stand_together(terms: Terms) -> bool:
    """Tell whether several terms are all of the kind with code extensions."""
    first, *others = terms or ("",)
    return not others or all(term.startswith("ISO 2022") for term in ([first] if first else []) + others)
