"""Which element of a received object said what."""

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
