"""Which element of a received object said what."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one element of an image said: the fact, its value in the node's own words, and the element's keyword.

    The keyword is "" where no element says anything of the fact. The fact "repair" tells of an element that was read
    although it is not as the standard has it.
    """

    fact: str
    value: str
    attribute: str


def name_of(keyword: str) -> str:
    """Return an attribute's keyword as words: `ViewPosition` as "View Position"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", keyword)


def describe(evidence: Iterable[Evidence]) -> str:
    """Return evidence as one phrase, such as "view: PA (View Position); body part: not stated"."""
    return "; ".join(
        f"{one.fact}: {one.value} ({name_of(one.attribute)})" if one.attribute else f"{one.fact}: {one.value}"
        for one in evidence
    )
