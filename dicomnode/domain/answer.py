"""The answer to a study: results, rejections, and what destinations want of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.summary import StudySummary


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
    UNSUPPORTED_PIXELS = "unsupported-pixels"
    NOT_CHEST_FRONTAL = "not-chest-frontal"
    ORIENTATION = "orientation"
    PATIENT_MISMATCH = "patient-mismatch"
    RAW_OF_PROCESSED = "raw-of-processed"


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
    summary: StudySummary = field(default_factory=StudySummary)
    analysed: tuple[str, ...] = ()
    seconds: Mapping[Stage, float] = field(default_factory=dict, compare=False)
    subjects: frozenset[Subject] = field(default=frozenset(), compare=False, repr=False)
