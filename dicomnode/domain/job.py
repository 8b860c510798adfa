"""A job, which is one version of the answer to a study: its state, and what the worker claims."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dicomnode.domain.instance import InstanceRef, StoredInstance, StudySender


class JobState(StrEnum):
    """The state of a job. Superseded: a newer version took over its images before it could answer them."""

    COLLECTING = "collecting"
    WAITING = "waiting"
    WORKING = "working"
    DONE = "done"
    REJECTED = "rejected"
    DEAD = "dead"
    DROPPED = "dropped"
    SUPERSEDED = "superseded"


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
class ExpectedJob:
    """A version of an answer whose study is not complete yet; `job` is what a claim would give now.

    `is_quiet`: no peer that sent something of the study is connected any more, so the study may be complete.
    """

    job: Job
    is_quiet: bool
