"""What was found out about each image of a study, and what the images of one study are to each other.

An image is examined by itself, so it may be examined before its study is complete. Only then can the images be
compared: all of them must be of one patient, and of each exposure one image is reported.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from dicomnode.dicom.header import RadiographHeader
from dicomnode.dicom.identity import Difference
from dicomnode.domain.answer import Rejection, RejectionReason, Stage
from dicomnode.domain.evidence import Evidence
from dicomnode.domain.frame import Frame
from dicomnode.domain.instance import StoredInstance
from dicomnode.inference.predictor import Reading
from dicomnode.results.context import SourceContext

log = logging.getLogger(__name__)

_TIME_DIGITS = 14  # YYYYMMDDHHMMSS


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadImage:
    """An image whose header was read."""

    instance: StoredInstance
    header: RadiographHeader
    context: SourceContext
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysedImage:
    """An image the model has read: where it came from, the frame that was read, and what the model gave.

    It says nothing of its study and of the time. `seconds`: how long each stage took.
    """

    instance: StoredInstance
    header: RadiographHeader
    context: SourceContext
    frame: Frame
    reading: Reading
    is_unusual: bool = False
    evidence: tuple[Evidence, ...] = ()
    seconds: Mapping[Stage, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedImage:
    """An image that was not analysed; header and context are None when it could not even be read."""

    instance: StoredInstance
    header: RadiographHeader | None
    context: SourceContext | None
    rejection: Rejection
    evidence: tuple[Evidence, ...] = ()
    seconds: Mapping[Stage, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedImage:
    """An image whose examination ended in an unexpected error."""

    instance: StoredInstance
    error: Exception
    seconds: Mapping[Stage, float] = field(default_factory=dict, compare=False)


Examination = AnalysedImage | RejectedImage | FailedImage
SettledImage = AnalysedImage | RejectedImage


def reject(one: StoredInstance | ReadImage | Examination, reason: RejectionReason, detail: str) -> RejectedImage:
    """Return the image, with what is known of it, as one that is rejected for this reason."""
    instance = one if isinstance(one, StoredInstance) else one.instance
    known = one if isinstance(one, ReadImage | AnalysedImage | RejectedImage) else None
    return RejectedImage(
        instance=instance,
        header=known.header if known else None,
        context=known.context if known else None,
        rejection=Rejection(source=instance.ref, reason=reason, detail=detail),
        evidence=known.evidence if known else (),
        seconds={} if isinstance(one, StoredInstance | ReadImage) else one.seconds,
    )


def settle(examinations: Sequence[Examination]) -> list[SettledImage]:
    """Return the images of one study as they are reported together, in their order.

    Raises: the error of the first image that failed, when every image did: then the fault may lie elsewhere.
    """
    return _one_of_each_exposure(_of_one_patient(_without_failures(examinations)))


def _without_failures(examinations: Sequence[Examination]) -> list[SettledImage]:
    """Reject the images that failed, if others of the study did not: one bad image must not spoil its study."""
    failed = [one for one in examinations if isinstance(one, FailedImage)]
    if failed and len(failed) == len(examinations):
        raise failed[0].error
    settled: list[SettledImage] = []
    for one in examinations:
        if isinstance(one, FailedImage):
            log.error("image-failed", exc_info=one.error, extra={"sop_instance": one.instance.ref.sop_instance})
            detail = "the image could not be examined for an unexpected reason, which is in the node's log"
            settled.append(reject(one, RejectionReason.UNREADABLE, detail))
        else:
            settled.append(one)
    return settled


def _of_one_patient(images: Sequence[SettledImage]) -> list[SettledImage]:
    """Reject all images of a study whose images are of different patients. Source: PS3.3 A.1.2.

    Every archive files a study under one patient, so a report for either of them would be filed under the wrong one as
    easily as under the right one: there is none until the sender has put the study in order. The node's own results
    that came back are not compared; they say what a former version of the images said.
    """
    difference = patient_difference(one.header for one in images if one.header is not None and not is_own(one))
    if difference is None:
        return list(images)
    detail = f"the images of the study are of different patients, by {difference.value}"
    return [
        one if one.header is None or is_own(one) else reject(one, RejectionReason.PATIENT_MISMATCH, detail)
        for one in images
    ]


def is_own(one: SettledImage) -> bool:
    """Tell whether the object is one of the node's own results that came back."""
    return isinstance(one, RejectedImage) and one.rejection.reason is RejectionReason.OWN_RESULT


def patient_difference(headers: Iterable[RadiographHeader]) -> Difference | None:
    """Return in what some of the images are of another patient than others, None when nothing shows that."""
    patients = dict.fromkeys(header.patient for header in headers)
    differences = (one.difference(other) for one, other in combinations(patients, 2))
    return next((difference for difference in differences if difference is not None), None)


def _one_of_each_exposure(
    images: Sequence[SettledImage],
) -> list[SettledImage]:
    """Reject a raw image where a processed one of the same exposure was analysed."""
    processed = [one.header for one in images if isinstance(one, AnalysedImage) and not _is_raw(one.header)]
    return [
        reject(one, RejectionReason.RAW_OF_PROCESSED, "the processed image of the same exposure is reported instead")
        if isinstance(one, AnalysedImage)
        and _is_raw(one.header)
        and any(is_same_exposure(one.header, other) for other in processed)
        else one
        for one in images
    ]


def _is_raw(header: RadiographHeader) -> bool:
    return header.exposure.for_processing


def is_same_exposure(raw: RadiographHeader, processed: RadiographHeader) -> bool:
    """Tell whether a processed image was made of the exposure that the raw one holds.

    It names the raw one as its source, or both name one irradiation event. Where none is named, they were acquired at
    the same second and state the same view. Source: PS3.3 C.7.6.1 (Source Image Sequence), C.7.6.1.1.
    """
    if raw.ref.sop_instance in processed.exposure.sources:
        return True
    events = set(raw.exposure.irradiation_event), set(processed.exposure.irradiation_event)
    if all(events):
        return not events[0].isdisjoint(events[1])
    acquired = raw.exposure.acquired_at
    same_second = len(acquired) >= _TIME_DIGITS and acquired == processed.exposure.acquired_at
    return same_second and raw.projection.view_position.words == processed.projection.view_position.words
