"""Work and deliveries: their states, and when to try again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from dicomnode.domain.instance import InstanceRef, StoredInstance, StudySender


class RejectionReason(StrEnum):
    """Why this model may not read an image. The values are stable: they stand in the ledger and in metrics."""

    OWN_RESULT = "own-result"
    NOT_A_PROJECTION = "not-a-projection"
    MODALITY = "modality"
    BODY_PART = "body-part"
    LATERAL_VIEW = "lateral-view"
    UNKNOWN_VIEW = "unknown-view"
    MULTI_FRAME = "multi-frame"
    TOO_SMALL = "too-small"
    TOO_LARGE = "too-large"
    AGE = "age"
    UNREADABLE = "unreadable"
    CORRUPT_PIXELS = "corrupt-pixels"
    NOT_CHEST_FRONTAL = "not-chest-frontal"
    ORIENTATION = "orientation"


class JobState(StrEnum):
    """A job is one version of one study's answer.

    Superseded: a newer version took over its images before it could answer them.
    """

    COLLECTING = "collecting"
    WAITING = "waiting"
    WORKING = "working"
    DONE = "done"
    REJECTED = "rejected"
    DEAD = "dead"
    DROPPED = "dropped"
    SUPERSEDED = "superseded"


class DeliveryState(StrEnum):
    """A delivery is one result instance on its way to one destination."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    DEAD = "dead"
    DROPPED = "dropped"


class ResultKind(StrEnum):
    """The kinds of object the node makes; part of what a result's UIDs derive from."""

    STRUCTURED_REPORT = "sr"
    SECONDARY_CAPTURE = "sc"
    FINDING_CAPTURE = "sc-finding"
    PRESENTATION_STATE = "gsps"
    PARAMETRIC_MAP = "pm"
    DOCUMENT = "pdf"


DEFAULT_OUTPUTS = frozenset({ResultKind.STRUCTURED_REPORT, ResultKind.SECONDARY_CAPTURE})
"""What a destination gets unless its profile says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One set of results to be made: which kinds, and what each of their Series Descriptions begins with.

    A SOP instance has one content, so the prefix is part of what the UIDs of a set derive from; the empty one adds
    nothing to them.
    """

    outputs: frozenset[ResultKind] = DEFAULT_OUTPUTS
    series_description_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One image that was not analysed, and why. `detail` is the node's own sentence, never text from the data set."""

    source: InstanceRef
    reason: RejectionReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultInstance:
    """A finished result as Part 10 bytes, ready to store.

    `derived_from` are the SOP Instance UIDs of the images it speaks of; `prefix` is that of the set it belongs to.
    """

    ref: InstanceRef
    kind: ResultKind
    transfer_syntax: str
    part10: bytes
    derived_from: tuple[str, ...]
    prefix: str = ""


class Stage(StrEnum):
    """What takes time on the path of a study. The values are stable: they stand in the store and in metrics.

    Receive: from a study's first image to its last. Wait: from there to the attempt that answered it. Decode, infer,
    encode: what the attempt did. Answer: from the last image to the answer. Send: one attempt to deliver one result.
    Deliver: from the result to its being stored at the destination.
    """

    RECEIVE = "receive"
    WAIT = "wait"
    DECODE = "decode"
    INFER = "infer"
    ENCODE = "encode"
    ANSWER = "answer"
    SEND = "send"
    DELIVER = "deliver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom and which order a study is of: a patient's number and an accession number, empty where it states none."""

    patient_id: str = ""
    accession_number: str = ""

    def items(self) -> tuple[tuple[str, str], ...]:
        """Return what is stated, each with its kind."""
        stated = (("patient", self.patient_id), ("accession", self.accession_number))
        return tuple((kind, value) for kind, value in stated if value.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyAnswer:
    """What the pipeline made of a study's instances: results, rejections, or both.

    `analysed` are the SOP Instance UIDs of the images that were read, whatever results were wanted of them. `seconds`
    is how long stages took, which is no part of what the answer says; nor are `subjects`, by which people find it.
    """

    results: tuple[ResultInstance, ...]
    rejections: tuple[Rejection, ...]
    summary: dict[str, object]
    analysed: tuple[str, ...] = ()
    seconds: Mapping[Stage, float] = field(default_factory=dict, compare=False)
    subjects: frozenset[Subject] = field(default=frozenset(), compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One version of one study's answer, claimed for work.

    `instances` are all instances of the study received so far; `senders` are all who sent something of it.
    `predecessors` are the SRs of the former version; `prefixes` names the set that an SR belongs to by its SOP Instance
    UID, where that set has a prefix.
    """

    job_id: int
    study: str
    version: int
    attempts: int
    instances: tuple[StoredInstance, ...]
    predecessors: tuple[InstanceRef, ...] = ()
    prefixes: Mapping[str, str] = field(default_factory=dict)
    senders: frozenset[StudySender] = frozenset()

    def predecessors_for(self, prefix: str) -> tuple[InstanceRef, ...]:
        """Return the SRs of the former version that belong to the set with this prefix."""
        return tuple(ref for ref in self.predecessors if self.prefixes.get(ref.sop_instance, "") == prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A version that is not complete yet, as it would be claimed now.

    `is_quiet`: nobody who sent something of it is connected any more, so it may be all there is.
    """

    job: Job
    is_quiet: bool


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
    """When to try again: `first_delay_s`, growing by `factor` to `max_delay_s`, until `give_up_after_s` of age."""

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
    """How connections to a peer are encrypted. `ca_file`: who vouches for it; None: the system's authorities."""

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

    `retry_after_s`: how long the peer asked to be left alone.
    """

    status: int | None
    cause: str
    permanent: bool
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """No response: connection refused, timed out, aborted, or association rejected."""

    cause: str
    permanent: bool = False


StoreOutcome = Accepted | Refused | NoAnswer
