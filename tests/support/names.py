"""Patients' names as devices write them: in every kind of character set, undeclared, and declared wrongly."""

import warnings
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.domain.identifiers import derive_uid
from tests.support.make import build, encode

Terms = str | list[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """The bytes of a Patient's Name as received, what they say, and the character set that results are written in."""

    declared: Terms
    raw: bytes
    says: str
    written: Terms


def _declared(terms: Terms, says: str, raw: bytes) -> Name:
    return Name(declared=terms, raw=raw, says=says, written=terms)


def _single(terms: str, codec: str, says: str) -> Name:
    return _declared(terms, says, says.encode(codec))


_YAMADA, _HONG = "Yamada^Tarou=山田^太郎=やまだ^たろう", "Hong^Gildong=洪^吉洞=홍^길동"
_WANG, _ZHANG = "Wang^XiaoDong=王^小东", "Zhang^XiaoDong=张^小东"
_JIS, _KS_X_1001, _GB_2312 = ["", "ISO 2022 IR 87"], ["", "ISO 2022 IR 149"], ["", "ISO 2022 IR 58"]
# PS3.5 H.3.1, I.2 and K.2, byte by byte.
_YAMADA_JIS = (
    b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"
)  # fmt: skip
_YAMADA_ROMAN = _YAMADA_JIS.replace(b"\x1b(B", b"\x1b(J")
_YAMADA_KANA = (
    b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J"
)  # fmt: skip
_HONG_KS = b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf"
_ZHANG_GB = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"
_SHIFT_JIS = "Yamada^Tarou=山田^太郎".encode("shift_jis")

DECLARED: dict[str, Name] = {
    "japanese": _declared(_JIS, _YAMADA, _YAMADA_JIS),
    "japanese-half-width": _declared(
        ["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", _YAMADA_KANA
    ),
    "korean": _declared(_KS_X_1001, _HONG, _HONG_KS),
    "chinese-gb18030": _single("GB18030", "gb18030", _WANG),
    "chinese-utf-8": _single("ISO_IR 192", "utf-8", "Wang^XiaoDong=王^小東"),
    # pydicom reads GB 2312 by code extension, but writes it without its escape sequences.
    "chinese-gb2312": Name(declared=_GB_2312, raw=_ZHANG_GB, says=_ZHANG, written="ISO_IR 192"),
    "latin-1": _single("ISO_IR 100", "latin-1", "Äneas^Rüdiger"),
    "latin-2": _single("ISO_IR 101", "iso8859-2", "Wałęsa^Łukasz"),
    "turkish": _single("ISO_IR 148", "iso8859-9", "Çavuşoğlu^İsmail"),
    "cyrillic": _single("ISO_IR 144", "iso8859-5", "Люкceмбypг^Иван"),
    "greek": _single("ISO_IR 126", "iso8859-7", "Διονυσιος^Γιώργος"),
    "arabic": _single("ISO_IR 127", "iso8859-6", "قباني^لنزار"),
    "hebrew": _single("ISO_IR 138", "iso8859-8", "שרון^דבורה"),
    "thai": _single("ISO_IR 166", "tis-620", "สมชาย^ใจดี"),
    "latin-1-extended": Name(
        declared=["", "ISO 2022 IR 100"], raw=b"Buc^J\x1b-A\xe9r\x1b-A\xf4me", says="Buc^Jérôme", written="ISO_IR 192"
    ),
}
"""As the standard has it."""

MISDECLARED: dict[str, Name] = {
    "ascii-undeclared": Name(declared=None, raw=b"Plain^Name", says="Plain^Name", written=None),
    "utf-8-undeclared": Name(declared=None, raw="Müller^Jürgen".encode(), says="Müller^Jürgen", written="ISO_IR 192"),
    "latin-1-undeclared": Name(declared=None, raw=b"M\xfcller", says="Müller", written="ISO_IR 100"),
    "latin-1-as-default": Name(declared="ISO_IR 6", raw=b"M\xfcller", says="Müller", written="ISO_IR 100"),
    "japanese-undeclared": Name(declared=None, raw=_YAMADA_JIS, says=_YAMADA, written=_JIS),
    "japanese-as-latin-1": Name(declared="ISO_IR 100", raw=_YAMADA_JIS, says=_YAMADA, written=_JIS),
    "japanese-alone": Name(declared="ISO 2022 IR 87", raw=_YAMADA_JIS, says=_YAMADA, written=_JIS),
    "japanese-misspelt": Name(declared=["", "ISO_IR 87"], raw=_YAMADA_JIS, says=_YAMADA, written=_JIS),
    "japanese-roman": Name(declared=_JIS, raw=_YAMADA_ROMAN, says=_YAMADA, written=_JIS),
    "korean-undeclared": Name(declared=None, raw=_HONG_KS, says=_HONG, written=_KS_X_1001),
    "korean-alone": Name(declared="ISO 2022 IR 149", raw=_HONG_KS, says=_HONG, written=_KS_X_1001),
    "korean-without-escapes": Name(
        declared="ISO_IR 149", raw="홍^길동".encode("euc_kr"), says="홍^길동", written=_KS_X_1001
    ),
    "chinese-undeclared": Name(declared=None, raw=_ZHANG_GB, says=_ZHANG, written="ISO_IR 192"),
    "latin-1-as-utf-8": Name(declared="ISO_IR 192", raw=b"M\xfcller", says="Müller", written="ISO_IR 100"),
    "latin-1-as-japanese": Name(declared=_JIS, raw=b"M\xfcller", says="Müller", written="ISO_IR 100"),
    "utf-8-as-japanese": Name(declared=_JIS, raw="山田^太郎".encode(), says="山田^太郎", written="ISO_IR 192"),
    "utf-8-under-another-name": Name(declared="UTF-8", raw="山田".encode(), says="山田", written="ISO_IR 192"),
    "undefined-in-greek": Name(declared="ISO_IR 126", raw=b"A\xae^\xd2", says="A®^Ò", written="ISO_IR 100"),
    # No way to tell: the bytes stay, so that whoever read the source rightly reads the results rightly.
    "shift-jis-undeclared": Name(
        declared=None, raw=_SHIFT_JIS, says=_SHIFT_JIS.decode("latin-1"), written="ISO_IR 100"
    ),
    "utf-8-as-latin-1": Name(declared="ISO_IR 100", raw="Müller".encode(), says="MÃ¼ller", written="ISO_IR 100"),
    "misspelt": Name(declared="ISO IR 100", raw=b"M\xfcller", says="Müller", written="ISO_IR 100"),
    "two-standalone": Name(
        declared=["ISO_IR 100", "ISO_IR 144"], raw=b"M\xfcller", says="Müller", written="ISO_IR 100"
    ),
}
"""As it is."""

NAMES = DECLARED | MISDECLARED


def named(name: str) -> bytes:
    """Return a radiograph of the patient of this name in `NAMES`."""
    given = NAMES[name]
    ds = build("cr", rows=320, columns=280, study_uid=derive_uid("tests", "named", name), character_set=given.declared)
    return with_raw(ds, PatientName=given.raw)


def with_raw(ds: Dataset, **values: bytes) -> bytes:
    """Return the Part 10 bytes of the data set with these bytes in it unencoded, as a careless modality writes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of character sets that are none, or cannot stand alone
        for keyword, value in values.items():
            setattr(ds, keyword, "Q" * (len(value) + len(value) % 2))
        part10 = encode(ds)
    for value in values.values():
        padded = value + b" " * (len(value) % 2)
        part10 = part10.replace(b"Q" * len(padded), padded, 1)
    return part10
