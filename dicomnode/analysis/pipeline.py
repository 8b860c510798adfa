"""The answer to a study: instances in, result instances and rejections out. Pure: no network, no store, no clock."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from dicomnode import __version__
from dicomnode.analysis.examination import (
    AnalysedImage,
    Examination,
    FailedImage,
    ReadImage,
    RejectedImage,
    SettledImage,
    reject,
    settle,
)
from dicomnode.bundle.manifest import Manifest
from dicomnode.dicom.header import read_radiograph
from dicomnode.domain.answer import RejectionReason, ResultInstance, ResultKind, Stage, StudyAnswer, Wanted
from dicomnode.domain.errors import Transient, UndecodablePixels, UnreadableObject, UnsupportedPixels
from dicomnode.domain.finding import Assessment, ModelIdentity
from dicomnode.domain.frame import Frame
from dicomnode.domain.identifiers import digest_of
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.imaging.eligibility import Ineligible, evidence_of, judge
from dicomnode.imaging.pixels import render
from dicomnode.inference.gate import Doubtful, GateVerdict, Turned, Typical, read_upright
from dicomnode.inference.operating import findings_of
from dicomnode.inference.predictor import Predictor
from dicomnode.results.context import Equipment, ResultIdentity, SourceContext
from dicomnode.results.inputs import ImageResultInputs, ReportInputs
from dicomnode.results.per_image import write_image_results
from dicomnode.results.sr import write_not_analysed, write_report
from dicomnode.results.summary import summarise
from dicomnode.settings.node import EligibilitySettings, PixelSettings, ResultSettings

log = logging.getLogger(__name__)

_SAYS_NOTHING_AGAINST_AN_IMAGE = (Transient, OSError, MemoryError)
_NEVER_REPORTED = frozenset({RejectionReason.OWN_RESULT, RejectionReason.PATIENT_MISMATCH})


@dataclass(frozen=True, slots=True, kw_only=True)
class AssessedImage:
    """An image the model has read, with what that means at the operating point."""

    instance: StoredInstance
    context: SourceContext
    frame: Frame
    assessment: Assessment


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Everything an answer depends on besides the study itself.

    `codecs`: the process that decodes compressed frames. `timer` tells how long stages take, and no answer.
    """

    codecs: CodecProcess
    predictor: Predictor
    manifest: Manifest
    identity: ModelIdentity
    operating_point: str
    eligibility: EligibilitySettings
    pixels: PixelSettings
    results: ResultSettings
    timer: Callable[[], float] = time.perf_counter

    def answer(
        self,
        job: Job,
        bytes_of: Callable[[StoredInstance], bytes],
        now: datetime,
        wanted: Sequence[Wanted] = (Wanted(),),
    ) -> StudyAnswer:
        """Answer one version of a study with the sets of results that are wanted of it.

        `bytes_of` gives an instance's Part 10 bytes.

        What is wrong with an object is a rejection, not an error. Raises: whatever `bytes_of` raises.
        """
        examinations = [self.examine(instance, bytes_of(instance)) for instance in job.instances]
        return self.conclude(job, examinations, now, wanted)

    def conclude(
        self, job: Job, examinations: Sequence[Examination], now: datetime, wanted: Sequence[Wanted]
    ) -> StudyAnswer:
        """Answer one version of a study from the examinations of its instances, in their order.

        Raises: the error of the first image, when the examination of every image ended in one.
        """
        begun = self.timer()
        images, results = self._write_what_can_be(job, settle(examinations), now, wanted)
        assessments = [self._assess(one, now).assessment for one in images if isinstance(one, AnalysedImage)]
        rejections = tuple(one.rejection for one in images if isinstance(one, RejectedImage))
        evidence = {one.instance.ref.sop_instance: one.evidence for one in images}
        return StudyAnswer(
            results=results,
            rejections=rejections,
            summary=summarise(job.study, assessments, rejections, evidence),
            analysed=tuple(assessment.source.sop_instance for assessment in assessments),
            subjects=frozenset(one.context.subject for one in images if one.context is not None),
            seconds=_together(examinations) | {Stage.ENCODE: self.timer() - begun},
        )

    def examine(self, instance: StoredInstance, part10: bytes) -> Examination:
        """Take one instance through both gates: its header, then its pixels.

        An error that nobody foresaw is part of the examination, so that the other images of the study are answered.
        Raises: Transient, OSError, MemoryError, which say nothing against the image.
        """
        begun = self.timer()
        try:
            return self._examine(instance, part10)
        except _SAYS_NOTHING_AGAINST_AN_IMAGE:
            raise
        except Exception as error:  # noqa: BLE001 whatever an image is, it must not spoil its study
            return FailedImage(instance=instance, error=error, seconds={Stage.DECODE: self.timer() - begun})

    def _examine(self, instance: StoredInstance, part10: bytes) -> Examination:
        begun = self.timer()
        read = self._read(instance, part10)
        decoded = self.timer()
        if isinstance(read, RejectedImage):
            return replace(read, seconds={Stage.DECODE: decoded - begun})
        image, frame = read
        judged = read_upright(self.predictor, frame, self.manifest.gate, image.header.righting)
        analysed = AnalysedImage(
            instance=instance,
            header=image.header,
            context=image.context,
            frame=judged.frame,
            reading=judged.reading,
            is_unusual=judged.is_unusual,
            evidence=image.evidence,
            seconds={Stage.DECODE: decoded - begun, Stage.INFER: self.timer() - decoded},
        )
        return analysed if isinstance(judged.verdict, Typical) else reject(analysed, *_why_not(judged.verdict))

    def _read(self, instance: StoredInstance, part10: bytes) -> tuple[ReadImage, Frame] | RejectedImage:
        """Judge an instance by its header and return its frame."""
        known: StoredInstance | ReadImage = instance
        try:
            radiograph = read_radiograph(part10)
            header = radiograph.header
            if header.ref != instance.ref:
                # Two readers of the same bytes would file it differently: results could go to another study.
                detail = "the identifiers in the object are not those under which it was received"
                return reject(instance, RejectionReason.UNREADABLE, detail)
            known = ReadImage(
                instance=instance,
                header=header,
                context=SourceContext.of(header),
                evidence=evidence_of(header),
            )
            verdict = judge(header, self.eligibility, maximum_pixels=self.pixels.maximum_pixels)
            if isinstance(verdict, Ineligible):
                return reject(known, verdict.reason, verdict.detail)
            return known, render(radiograph, self.pixels, self.codecs)
        except UnreadableObject as error:
            return reject(known, RejectionReason.UNREADABLE, str(error))
        except UnsupportedPixels as error:
            return reject(known, RejectionReason.UNSUPPORTED_PIXELS, str(error))
        except UndecodablePixels as error:
            return reject(known, RejectionReason.CORRUPT_PIXELS, str(error))

    def _assess(self, one: AnalysedImage, now: datetime) -> AssessedImage:
        abnormality, *findings = findings_of(one.reading.scores, self.manifest, self.operating_point)
        assessment = Assessment(
            source=one.instance.ref,
            model=self.identity,
            abnormality=abnormality,
            findings=tuple(findings),
            saliency=one.reading.saliency,
            assessed_at=now,
            is_unusual=one.is_unusual,
        )
        return AssessedImage(instance=one.instance, context=one.context, frame=one.frame, assessment=assessment)

    def _write_what_can_be(
        self, job: Job, images: Sequence[SettledImage], now: datetime, wanted: Sequence[Wanted]
    ) -> tuple[Sequence[SettledImage], tuple[ResultInstance, ...]]:
        """Write the results; where that fails, reject the images at fault and write those of the others.

        Raises: the error, when it is no fault of some of the images.
        """
        try:
            return images, self._write_all(job, images, now, wanted)
        except _SAYS_NOTHING_AGAINST_AN_IMAGE:
            raise
        except Exception:
            settled = [self._reject_unless_writable(job, one, now, wanted) for one in images]
            analysed = [isinstance(one, AnalysedImage) for one in settled]
            if not any(analysed) or analysed == [isinstance(one, AnalysedImage) for one in images]:
                raise
        return settled, self._write_all(job, settled, now, wanted)

    def _reject_unless_writable(
        self, job: Job, one: SettledImage, now: datetime, wanted: Sequence[Wanted]
    ) -> SettledImage:
        if not isinstance(one, AnalysedImage):
            return one
        try:
            self._write_all(job, [one], now, wanted)
        except Exception:
            # Whatever an image is, it must not spoil its study.
            log.exception("image-failed", extra={"sop_instance": one.instance.ref.sop_instance})
            detail = "no results could be written for the image, for an unexpected reason, which is in the node's log"
            return reject(one, RejectionReason.UNREADABLE, detail)
        return one

    def _write_all(
        self, job: Job, images: Sequence[SettledImage], now: datetime, wanted: Sequence[Wanted]
    ) -> tuple[ResultInstance, ...]:
        """Write every set of results that is wanted."""
        assessed = [self._assess(one, now) for one in images if isinstance(one, AnalysedImage)]
        rejections = [one for one in images if isinstance(one, RejectedImage)]
        return tuple(
            replace(result, prefix=want.series_description_prefix)
            for want in wanted
            for result in self._write(job, assessed, rejections, now, want)
        )

    def _write(
        self,
        job: Job,
        assessed: Sequence[AssessedImage],
        rejected: Sequence[RejectedImage],
        now: datetime,
        want: Wanted,
    ) -> tuple[ResultInstance, ...]:
        """Write one set of results."""
        if not assessed:
            return self._write_refusal(job, rejected, now, want)
        # Only what was analysed identifies the results: a late lateral, or a result that came back, changes nothing.
        equipment, identity = self._identify(job, [one.instance for one in assessed], want)
        images = (
            result
            for number, one in enumerate(assessed, start=1)
            for result in write_image_results(
                want.outputs,
                ImageResultInputs(
                    source=one.context,
                    frame=one.frame,
                    assessment=one.assessment,
                    equipment=equipment,
                    identity=identity,
                    now=now,
                    number=number,
                ),
            )
        )
        if ResultKind.STRUCTURED_REPORT not in want.outputs:
            return tuple(images)
        inputs = ReportInputs(
            sources={one.instance.ref.sop_instance: one.context for one in assessed},
            frames={one.instance.ref.sop_instance: one.frame for one in assessed},
            assessments=[one.assessment for one in assessed],
            rejections=[one.rejection for one in rejected],
            predecessors=job.predecessors_for(want.series_description_prefix),
            equipment=equipment,
            identity=identity,
            now=now,
        )
        return (write_report(inputs), *images)

    def _write_refusal(
        self, job: Job, rejected: Sequence[RejectedImage], now: datetime, want: Wanted
    ) -> tuple[ResultInstance, ...]:
        """Write the "not analysed" report, if it is asked for.

        The node's own results that came back are no reason for one, or each would bring forth the next. Nor are images
        of different patients: a report on them would be filed under one of the patients.
        """
        foreign = [one for one in rejected if one.rejection.reason not in _NEVER_REPORTED]
        sources = {one.instance.ref.sop_instance: one.context for one in foreign if one.context is not None}
        if not (self.results.report_rejected and sources and ResultKind.STRUCTURED_REPORT in want.outputs):
            return ()
        equipment, identity = self._identify(job, [one.instance for one in foreign], want)
        inputs = ReportInputs(
            sources=sources,
            assessments=(),
            rejections=[one.rejection for one in foreign],
            predecessors=job.predecessors_for(want.series_description_prefix),
            equipment=equipment,
            identity=identity,
            now=now,
        )
        return (write_not_analysed(inputs),)

    def _identify(self, job: Job, inputs: Sequence[StoredInstance], want: Wanted) -> tuple[Equipment, ResultIdentity]:
        equipment = Equipment(
            settings=self.results,
            model=self.identity,
            software_version=__version__,
            series_description_prefix=want.series_description_prefix,
        )
        identity = ResultIdentity(
            study=job.study,
            inputs_digest=digest_of(*sorted(instance.sha256 for instance in inputs)),
            bundle_hash=self.identity.bundle_hash,
            settings_digest=equipment.settings_digest(self.operating_point, self.pixels.model_dump_json()),
        )
        return equipment, identity


def _together(examinations: Sequence[Examination]) -> dict[Stage, float]:
    """Return how long each stage took of all images together."""
    spent: dict[Stage, float] = {}
    for examination in examinations:
        for stage, taken_s in examination.seconds.items():
            spent[stage] = spent.get(stage, 0.0) + taken_s
    return spent


def _why_not(verdict: GateVerdict) -> tuple[RejectionReason, str]:
    if isinstance(verdict, Turned | Doubtful):
        return RejectionReason.ORIENTATION, "the image seems to be turned or inverted, and could not be righted"
    return (
        RejectionReason.NOT_CHEST_FRONTAL,
        "the pixels do not look like the upright frontal chest radiographs the model was trained on",
    )
