"""Who may connect and associate, and how many at once.

A visit is one connection, from the moment it is accepted until it is closed.
"""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_network

from dicomnode.net.dimse.addresses import Network, is_in
from dicomnode.net.scp.rate_limit import RateLimit
from dicomnode.settings.node import ScpSettings

_WAITING_PER_ASSOCIATION = 4
_BURST_S = 5.0

_Networks = tuple[Network, ...]


class AssociateRejection(Enum):
    """Result, source and reason of an A-ASSOCIATE-RJ. Source: PS3.8 9.3.4."""

    APPLICATION_CONTEXT = (1, 1, 2)
    CALLING_AE = (1, 1, 3)
    CALLED_AE = (1, 1, 7)
    PROTOCOL_VERSION = (1, 2, 2)
    CONGESTION = (2, 3, 1)
    LIMIT = (2, 3, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why somebody may not come in; `reason` stands in logs and counts."""

    rejection: AssociateRejection
    reason: str


@dataclass(slots=True, eq=False)
class Visit:
    """One connection; `calling_ae` from the moment it may be an association."""

    address: str
    wire: socket.socket
    calling_ae: str | None = None

    def cut(self) -> None:
        """End the connection under whoever is reading from it, who then closes the socket."""
        with contextlib.suppress(OSError):
            # Past SSLSocket's own, which would let a writer on another thread go on without encryption.
            socket.socket.shutdown(self.wire, socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """A visit that has to end because others came; `reason` stands in logs and counts."""

    visit: Visit
    reason: str


class Admission:
    """Keeps the list of present visits, and decides about new ones. Used by many threads."""

    def __init__(self, settings: ScpSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._visits: dict[Visit, None] = {}
        self._networks = _networks(settings.networks)
        self._networks_of = {title: _networks(entry) for title, entry in settings.calling_ae_networks.items()}
        per_s = settings.maximum_associations_per_s
        self._rate_limit = RateLimit(per_s, _BURST_S * per_s)

    def may_connect(self, address: str) -> bool:
        """Tell whether an address is in a network from which peers may connect."""
        return not self._networks or is_in(address, self._networks)

    def connect(self, address: str, wire: socket.socket) -> tuple[Visit, Eviction | None]:
        """Return the visit of a new connection, and which other one has to make room for it.

        An honest peer asks at once. So of those that have not asked yet the oldest goes, of the address with the most.
        """
        visit = Visit(address, wire)
        with self._lock:
            eviction = self._make_room(address)
            if eviction is not None:
                del self._visits[eviction.visit]
            self._visits[visit] = None
        return visit, eviction

    def waiting(self) -> list[Visit]:
        """Return the visits that are no associations, oldest first."""
        with self._lock:
            return self._waiting()

    def associate(self, visit: Visit, *, calling_ae: str, called_ae: str) -> Refusal | None:
        """Let a connection become an association, or say why not."""
        settings = self._settings
        if not self._rate_limit.take(visit.address):
            return Refusal(rejection=AssociateRejection.CONGESTION, reason="rate")
        if settings.require_called_ae and called_ae != settings.ae_title:
            return Refusal(rejection=AssociateRejection.CALLED_AE, reason="called-ae")
        if settings.calling_ae_titles and calling_ae not in settings.calling_ae_titles:
            return Refusal(rejection=AssociateRejection.CALLING_AE, reason="calling-ae")
        if calling_ae in self._networks_of and not is_in(visit.address, self._networks_of[calling_ae]):
            return Refusal(rejection=AssociateRejection.CALLING_AE, reason="calling-ae-network")
        with self._lock:
            refusal = self._limit(visit.address, calling_ae)
            if refusal is None:
                visit.calling_ae = calling_ae
            return refusal

    def leave(self, visit: Visit) -> None:
        """Take a connection that has ended off the list."""
        with self._lock:
            self._visits.pop(visit, None)

    def _waiting(self) -> list[Visit]:
        return [entry for entry in self._visits if entry.calling_ae is None]

    def _make_room(self, address: str) -> Eviction | None:
        most, waiting = self._settings.maximum_associations, self._waiting()
        per_address = Counter(entry.address for entry in waiting)
        if per_address[address] >= most:
            crowd, reason = address, "connections-per-address"
        elif len(waiting) >= _WAITING_PER_ASSOCIATION * most:
            crowd, reason = per_address.most_common(1)[0][0], "connections"
        else:
            return None
        return Eviction(visit=next(entry for entry in waiting if entry.address == crowd), reason=reason)

    def _limit(self, address: str, calling_ae: str) -> Refusal | None:
        present = [entry for entry in self._visits if entry.calling_ae is not None]
        most = self._settings.maximum_associations_per_peer
        counted = (
            ("associations", len(present), self._settings.maximum_associations),
            ("associations-per-address", sum(entry.address == address for entry in present), most),
            ("associations-per-ae", sum(entry.calling_ae == calling_ae for entry in present), most),
        )
        for reason, count, limit in counted:
            if count >= limit:
                return Refusal(rejection=AssociateRejection.LIMIT, reason=reason)
        return None


def _networks(texts: Sequence[str]) -> _Networks:
    return tuple(ip_network(text) for text in texts)
