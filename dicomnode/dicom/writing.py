"""Writing values that a source sent into a new data set, whatever their form."""

import re
from typing import Any

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")


def is_code_string(value: str) -> bool:
    """Tell whether a text has the form of a code string (CS). Source: PS3.5 6.2."""
    return _CODE_STRING.fullmatch(value) is not None


def put(ds: Dataset, keyword: str, value: Any) -> None:
    """Set an attribute without pydicom's check of the value's form."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise AttributeError(f"{keyword} is not a DICOM keyword")
    ds.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))


def non_ascii(ds: Dataset) -> list[tuple[str, bool]]:
    """Return every string outside ASCII anywhere in the data set, and whether it is a person's name."""
    found: list[tuple[str, bool]] = []
    for element in ds.iterall():
        if element.VR in {"LO", "LT", "PN", "SH", "ST", "UC", "UT"} and not element.is_empty:
            values = element.value if isinstance(element.value, (list, MultiValue)) else [element.value]
            found.extend((str(value), element.VR == "PN") for value in values if not str(value).isascii())
    return found
