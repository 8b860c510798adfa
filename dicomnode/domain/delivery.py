"""The delivery of a result to a destination: its states, the outcomes of an attempt, and when the next one is due."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from dicomnode.domain.answer import ResultKind
from dicomnode.domain.instance import InstanceRef


class DeliveryState(StrEnum):
    """The state of a delivery: one result instance on its way to one destination."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    DEAD = "dead"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One result instance due at one destination."""

    delivery_id: int
    destination: str
    ref: InstanceRef
    kind: ResultKind
    transfer_syntax: str
    blob: str
    attempts: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The pauses between attempts, from `first_delay_s` by `factor` to `max_delay_s`, and the age to give up."""

    first_delay_s: float = 30.0
    factor: float = 2.0
    max_delay_s: float = 600.0
    give_up_after_s: float = 7 * 24 * 3600.0
    jitter: float = 0.1

    def delay_s(self, attempts: int, randomness: float) -> float:
        """Return the wait after the attempt numbered `attempts` (from 1).

        `randomness` in [0, 1) spreads peers that failed together over `jitter` of the delay.
        """
        grown = self.first_delay_s * self.factor ** min(attempts - 1, 60)
        return min(grown, self.max_delay_s) * (1 + self.jitter * (2 * randomness - 1))

    def exhausted(self, age_s: float) -> bool:
        """Tell whether work of this age is to be given up."""
        return age_s >= self.give_up_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTls:
    """How connections to a peer are encrypted. `ca_file`: its certificate authorities; None: those of the system."""

    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    client_key_password_file: Path | None = None
    check_hostname: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A Storage SCP that receives results, over TLS if that says how. `name` is the operator's, in the ledger too."""

    name: str
    ae_title: str
    host: str
    port: int
    tls: PeerTls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The peer stored the object. `warning` is the coded warning status, if it gave one (PS3.4 B.2.3)."""

    warning: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The peer answered with a failure status, or with no presentation context for the object.

    `retry_after_s`: how long the peer asked to be left alone. `comment`: its Error Comment, which may name a patient:
    it is shown to who sends by hand, and goes into no log and no ledger.
    """

    status: int | None
    cause: str
    permanent: bool
    retry_after_s: float | None = None
    comment: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """No response: connection refused, timed out, aborted, or association rejected."""

    cause: str
    permanent: bool = False


StoreOutcome = Accepted | Refused | NoAnswer
