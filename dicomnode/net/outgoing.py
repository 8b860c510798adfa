"""What is to be sent, in which form a destination would best have it, and how its outcome is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dicomnode.delivery_settings import Encoding, SrClass
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.job import StoreOutcome
from dicomnode.net.contexts import COMPREHENSIVE_3D_SR, COMPRESSED_RESULTS, ENCODINGS, REPORT_PREFERENCES
from dicomnode.net.part10 import read_file_head, read_ref

Fallback = Callable[[bytes, frozenset[str]], bytes | None]
"""Given Part 10 bytes and acceptable SOP classes: the same content as one of these, or None."""

Report = Callable[[int, StoreOutcome, InstanceRef | None], None]
"""Called as soon as an outcome is known: the position of the item, the outcome, what was sent if it was a fallback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An instance to be sent; `read` returns its Part 10 bytes when its turn comes."""

    sop_class: str
    transfer_syntax: str
    read: Callable[[], bytes]


class Transfer(Protocol):
    """A way to one destination."""

    def __call__(self, items: Sequence[Outgoing], *, report: Report) -> object:
        """Send a batch and report every outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """In which form a destination would best have results.

    Without an `encoding` everything goes in its own; without a `fallback` everything goes under its own class.
    """

    sr_class: SrClass = SrClass.COMPREHENSIVE_3D
    encoding: Encoding | None = None
    fallback: Fallback | None = None

    def classes(self, sop_class: str) -> tuple[str, ...]:
        """Return the SOP classes under which an object may go, the best first."""
        if self.fallback is None or sop_class != COMPREHENSIVE_3D_SR.uid:
            return (sop_class,)
        return REPORT_PREFERENCES[self.sr_class]

    def syntax(self, sop_class: str) -> str | None:
        """Return the transfer syntax in which an object of this class would best go, if another than its own."""
        if self.encoding is None:
            return None
        for_all = self.encoding in (Encoding.EXPLICIT, Encoding.IMPLICIT)
        return ENCODINGS[self.encoding] if for_all or sop_class in COMPRESSED_RESULTS else None

    def under(self, part10: bytes, sop_class: str) -> tuple[bytes, InstanceRef | None] | None:
        """Return an object as one of this SOP class, with its new reference if it is another one; None if it cannot."""
        if read_file_head(part10).sop_class == sop_class:
            return part10, None
        variant = self.fallback(part10, frozenset({sop_class})) if self.fallback is not None else None
        if variant is None:
            return None
        head = read_file_head(variant)
        return variant, read_ref(variant[head.offset :], head.transfer_syntax)


AS_IT_IS = Form()
"""Every object under its own class and in its own encoding, where that is accepted."""
