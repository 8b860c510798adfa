"""Which module of which IOD an attribute belongs to, and its type there, from the standard's own tables in highdicom.

Source: PS3.3 Annex A and C, as highdicom carries them in machine-readable form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from highdicom import _standard_utils as standard

_FIRST_WORDS = {"sop": "SOP", "sr": "SR", "sc": "SC", "voi": "VOI", "lut": "LUT", "icc": "ICC"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the standard has an attribute: the module's name and the attribute's type (1, 1C, 2, 2C or 3)."""

    module: str
    type: str


def place_of(sop_class: str, path: Sequence[str], *, enclosing: str = "") -> Place | None:
    """Return the place of the attribute at `path` (keywords, the last being its own), or None where there is none.

    Where several modules of the IOD have it, the one `enclosing` names if it is among them, else the first mandatory
    one: an attribute of a sequence item belongs to the module of the sequence.
    """
    places = _places(sop_class).get(tuple(path), ())
    same = (place for place in places if place.module == enclosing)
    return next(same, places[0] if places else None)


def iod_of(sop_class: str) -> str | None:
    """Return the name of the SOP class's IOD, such as `comprehensive-3d-sr`."""
    found = standard.get_sop_class_iod_map().get(sop_class)
    return None if found is None else str(found)


@cache
def _places(sop_class: str) -> dict[tuple[str, ...], tuple[Place, ...]]:
    iod = iod_of(sop_class)
    if iod is None:
        return {}
    modules = sorted(standard.get_iod_module_map()[iod], key=lambda module: module["usage"] != "M")
    found: dict[tuple[str, ...], tuple[Place, ...]] = {}
    for module in modules:
        for entry in standard.get_module_attribute_map()[module["key"]]:
            path = (*entry["path"], entry["keyword"])
            place = Place(module=_title(module["key"]), type=entry["type"])
            found[path] = (*found.get(path, ()), place)
    return found


def _title(key: str) -> str:
    return " ".join(_FIRST_WORDS.get(word, word.capitalize()) for word in key.split("-"))
