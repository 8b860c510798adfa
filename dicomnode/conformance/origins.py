"""Where a value comes from, found by comparing the node's answers with one thing changed at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

from dicomnode.conformance.samples import Variant

Values = tuple[str, ...]
"""The values at one place of one object, in order; "" is an empty value, and no value at all means it is absent."""

_LONGEST_LIST = 20
_OF = {variant: variant for variant in Variant} | {Variant.SPARSE: Variant.SOURCE, Variant.BARE: Variant.SETTINGS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The values seen at one place: in the base answer, in each variant, and in other answers."""

    base: Values
    variants: Mapping[Variant, Values]
    others: tuple[Values, ...] = ()

    @property
    def presence(self) -> str:
        """Return ALWAYS, VNAP (value not always present), ANAP (attribute not always present) or EMPTY."""
        seen = [self.base, *self.variants.values(), *self.others]
        if all(not any(values) for values in seen):
            return "EMPTY"
        if not all(seen):
            return "ANAP"
        return "ALWAYS" if all(any(values) for values in seen) else "VNAP"

    def origin(self, *, copied: bool = False) -> str:
        """Return how the value arises; `copied`: it is the source image's own."""
        changed = list(dict.fromkeys(_OF[variant] for variant in Variant if self._differs(variant)))
        if not changed:
            return "FIXED"
        if changed == [Variant.SETTINGS]:
            return "CONFIG"
        if changed == [Variant.SOURCE]:
            return "COPY" if copied else "CALC from the source image"
        return f"AUTO from {_listed([variant.value for variant in changed])}"

    def distinct(self) -> str:
        """Return every value seen, once, or how many there are when they are too many to list."""
        found = dict.fromkeys(
            value for values in (self.base, *self.variants.values(), *self.others) for value in values if value
        )
        return "; ".join(found) if len(found) <= _LONGEST_LIST else f"{len(found)} values"

    def _differs(self, variant: Variant) -> bool:
        values = self.variants.get(variant, self.base)
        if _OF[variant] is variant:
            return values != self.base
        # What states little leaves values out; only a value of its own says where values come from.
        return any(value and value not in self.base for value in values)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
