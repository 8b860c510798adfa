"""Stores, images and answers for the store's tests: literal, small, on an explicit clock."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dicomnode.domain.answer import Rejection, RejectionReason, ResultInstance, ResultKind, StudyAnswer
from dicomnode.domain.identifiers import derive_uid
from dicomnode.domain.instance import AssociationInfo, InstanceRef, StoredInstance
from dicomnode.domain.job import Job, JobState
from dicomnode.domain.routing import Recipient, Route
from dicomnode.settings.node import AssemblySettings, StoreSettings
from dicomnode.store import Store
from dicomnode.store.blobs.local import SystemCalls
from dicomnode.store.events import EventKind
from dicomnode.store.reception import Receipt

CR = "1.2.840.10008.5.1.4.1.1.1"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
QUIET_S, MAXIMUM_WAIT_S = 2.0, 300.0


def at(seconds: float) -> datetime:
    """Return the time so many seconds into a test."""
    return datetime(2025, 1, 31, 12, tzinfo=UTC) + timedelta(seconds=seconds)


def open_store(
    path: Path,
    *,
    exclusive: bool = True,
    calls: SystemCalls | None = None,
    minimum_free_bytes: int = 0,
    busy_timeout_s: float = 10.0,
) -> Store:
    return Store.open(
        StoreSettings(path=path, minimum_free_bytes=minimum_free_bytes),
        AssemblySettings(quiet_s=QUIET_S, maximum_wait_s=MAXIMUM_WAIT_S),
        exclusive=exclusive,
        calls=calls,
        busy_timeout_s=busy_timeout_s,
    )


def association(name: str = "one", calling_ae: str = "MODALITY") -> AssociationInfo:
    return AssociationInfo(association_id=name, calling_ae=calling_ae, called_ae="CXRNODE", peer_address="10.0.0.7")


def image(study: str = "1.1", number: int = 1) -> InstanceRef:
    return InstanceRef(study=study, series=f"{study}.2", sop_class=CR, sop_instance=f"{study}.2.{number}")


def accept(
    store: Store,
    study: str = "1.1",
    number: int = 1,
    *,
    content: bytes = b"pixels",
    seconds: float = 0.0,
    over: str = "one",
    calling_ae: str = "MODALITY",
) -> Receipt:
    """Accept one image; its bytes are made of its UID and `content`."""
    ref = image(study, number)
    return store.reception.accept(ref, EXPLICIT_LE, part10(ref, content), association(over, calling_ae), at(seconds))


def part10(ref: InstanceRef, content: bytes = b"pixels") -> bytes:
    return ref.sop_instance.encode() + b"|" + content


def claim(store: Store, seconds: float) -> Job:
    """Claim a job that the test knows to be due."""
    job = store.inbox.claim(at(seconds))
    assert job is not None
    return job


def result(job: Job, kind: ResultKind, derived_from: tuple[str, ...] | None = None) -> ResultInstance:
    """Return a result as the pipeline would: its UIDs derive from the study, the inputs and the kind."""
    inputs = hashlib.sha256("".join(sorted(instance.sha256 for instance in job.instances)).encode()).hexdigest()
    sop_class = COMPREHENSIVE_3D_SR if kind is ResultKind.STRUCTURED_REPORT else SECONDARY_CAPTURE
    uid = derive_uid(job.study, inputs, kind)
    ref = InstanceRef(
        study=job.study, series=derive_uid(job.study, kind, "series"), sop_class=sop_class, sop_instance=uid
    )
    mentioned = tuple(instance.ref.sop_instance for instance in job.instances)
    return ResultInstance(
        ref=ref,
        kind=kind,
        transfer_syntax=EXPLICIT_LE,
        part10=b"result " + uid.encode(),
        derived_from=mentioned if derived_from is None else derived_from,
    )


def answer(job: Job) -> StudyAnswer:
    """Answer every image of a job with one SR and one SC."""
    results = (result(job, ResultKind.STRUCTURED_REPORT), result(job, ResultKind.SECONDARY_CAPTURE))
    return StudyAnswer(results=results, rejections=())


def to(*names: str, **profile: Any) -> Route:
    """Return the route to these destinations."""
    return Route(recipients=tuple(Recipient(name=name, **profile) for name in names))


def rejection_of_all(job: Job) -> StudyAnswer:
    rejections = tuple(
        Rejection(source=instance.ref, reason=RejectionReason.LATERAL_VIEW, detail="a lateral view")
        for instance in job.instances
    )
    return StudyAnswer(results=(), rejections=rejections)


def finished(store: Store, seconds: float, *destinations: str) -> StudyAnswer:
    """Claim a job that is due, and answer it."""
    job = claim(store, seconds)
    given = answer(job)
    store.inbox.finish(job, given, to(*destinations), at(seconds))
    return given


def states(store: Store, study: str = "1.1") -> list[JobState]:
    """Return the state of each version of a study's answer."""
    return [entry.state for entry in store.ledger.jobs_of(study)]


def kinds(store: Store, study: str = "1.1") -> list[EventKind]:
    """Return what happened to a study."""
    return [event.kind for event in store.ledger.explain(study)]


def uids(instances: Sequence[StoredInstance]) -> list[str]:
    return [instance.ref.sop_instance for instance in instances]
