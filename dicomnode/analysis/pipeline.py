"""The answer to a study: instances in, result instances and rejections out. Pure: no network, no store, no clock."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from dicomnode import __version__
from dicomnode.bundle.manifest import Manifest
from dicomnode.dicom.header import header_of
from dicomnode.dicom.reader import read_and_repair
from dicomnode.domain.answer import Rejection, RejectionReason, ResultInstance, ResultKind, Stage, StudyAnswer, Wanted
from dicomnode.domain.errors import UndecodablePixels, UnreadableObject
from dicomnode.domain.finding import Assessment, ModelIdentity
from dicomnode.domain.frame import Frame
from dicomnode.domain.identifiers import digest_of
from dicomnode.domain.instance import StoredInstance
from dicomnode.domain.job import Job
from dicomnode.imaging.eligibility import Ineligible, judge
from dicomnode.imaging.pixels import render
from dicomnode.inference.gate import Doubtful, GateVerdict, Turned, Typical, judge_pixels, repair
from dicomnode.inference.operating import findings_of
from dicomnode.inference.predictor import Predictor, Reading
from dicomnode.results.context import Equipment, ResultIdentity, SourceContext
from dicomnode.results.inputs import ImageResultInputs, ReportInputs
from dicomnode.results.per_image import write_image_results
from dicomnode.results.sr import write_not_analysed, write_report
from dicomnode.results.summary import summarise
from dicomnode.settings.node import EligibilitySettings, PixelSettings, ResultSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """An image the model has read: where it came from, the frame that was read, and what the model gave.

    It says nothing of its study and of the time, so it may be made before the study is complete. `seconds`: how long
    that took.
    """

    instance: StoredInstance
    context: SourceContext
    frame: Frame
    reading: Reading
    seconds: Mapping[Stage, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """An image the model has read, with what that means at the operating point."""

    instance: StoredInstance
    context: SourceContext
    frame: Frame
    assessment: Assessment


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAssessed:
    """An image that was not analysed; its context is None when it could not even be read."""

    instance: StoredInstance
    context: SourceContext | None
    rejection: Rejection
    seconds: Mapping[Stage, float] = field(default_factory=dict, compare=False)


Examination = Examined | NotAssessed


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Everything an answer depends on besides the study itself; `timer` tells how long stages take, and no answer."""

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
        examined = [self.examine(instance, bytes_of(instance)) for instance in job.instances]
        return self.conclude(job, examined, now, wanted)

    def conclude(
        self, job: Job, examinations: Sequence[Examination], now: datetime, wanted: Sequence[Wanted]
    ) -> StudyAnswer:
        """Answer one version of a study from the examinations of its instances, in their order."""
        assessed = [self._assess(one, now) for one in examinations if isinstance(one, Examined)]
        rejected = [one for one in examinations if isinstance(one, NotAssessed)]
        begun = self.timer()
        results = tuple(
            replace(result, prefix=want.series_description_prefix)
            for want in wanted
            for result in self._write(job, assessed, rejected, now, want)
        )
        return StudyAnswer(
            results=results,
            rejections=tuple(outcome.rejection for outcome in rejected),
            summary=summarise(job.study, [one.assessment for one in assessed], [one.rejection for one in rejected]),
            analysed=tuple(one.instance.ref.sop_instance for one in assessed),
            subjects=frozenset(one.context.subject for one in examinations if one.context is not None),
            seconds=_together(examinations) | {Stage.ENCODE: self.timer() - begun},
        )

    def examine(self, instance: StoredInstance, part10: bytes) -> Examination:
        """Take one instance through both gates: tags, then pixels."""
        begun = self.timer()
        looked = self._read(instance, part10)
        decoded = self.timer()
        if isinstance(looked, NotAssessed):
            return replace(looked, seconds={Stage.DECODE: decoded - begun})
        context, frame = looked
        frame, reading, seen = self._look(frame)
        seconds = {Stage.DECODE: decoded - begun, Stage.INFER: self.timer() - decoded}
        if not isinstance(seen, Typical):
            return replace(_rejected(instance, context, *_why_not(seen)), seconds=seconds)
        return Examined(instance=instance, context=context, frame=frame, reading=reading, seconds=seconds)

    def _read(self, instance: StoredInstance, part10: bytes) -> tuple[SourceContext, Frame] | NotAssessed:
        """Judge an instance by its tags and return its frame."""
        context = None
        try:
            dataset, repairs = read_and_repair(part10)
            header = header_of(dataset, repairs)
            context = SourceContext.of(header)
            verdict = judge(header, self.eligibility, maximum_pixels=self.pixels.maximum_pixels)
            if isinstance(verdict, Ineligible):
                return _rejected(instance, context, verdict.reason, verdict.detail)
            frame = render(dataset, instance.ref, self.pixels)
        except UnreadableObject as error:
            return _rejected(instance, context, RejectionReason.UNREADABLE, str(error))
        except UndecodablePixels as error:
            return _rejected(instance, context, RejectionReason.CORRUPT_PIXELS, str(error))
        return context, frame

    def _look(self, frame: Frame) -> tuple[Frame, Reading, GateVerdict]:
        """Run the model and the pixel gate; an image that is certainly turned or inverted is righted once."""
        reading = self.predictor.read(frame)
        verdict = judge_pixels(reading, self.manifest.gate)
        if isinstance(verdict, Turned):
            frame = repair(frame, verdict)
            reading = self.predictor.read(frame)
            verdict = judge_pixels(reading, self.manifest.gate)
        return frame, reading, verdict

    def _assess(self, one: Examined, now: datetime) -> Assessed:
        abnormality, *findings = findings_of(one.reading.scores, self.manifest, self.operating_point)
        assessment = Assessment(
            source=one.instance.ref,
            model=self.identity,
            abnormality=abnormality,
            findings=tuple(findings),
            saliency=one.reading.saliency,
            assessed_at=now,
        )
        return Assessed(instance=one.instance, context=one.context, frame=one.frame, assessment=assessment)

    def _write(
        self, job: Job, assessed: Sequence[Assessed], rejected: Sequence[NotAssessed], now: datetime, want: Wanted
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
        self, job: Job, rejected: Sequence[NotAssessed], now: datetime, want: Wanted
    ) -> tuple[ResultInstance, ...]:
        """Write the "not analysed" report, if it is asked for.

        The node's own results that came back are no reason for one, or each would bring forth the next.
        """
        foreign = [one for one in rejected if one.rejection.reason is not RejectionReason.OWN_RESULT]
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


def _rejected(
    instance: StoredInstance, context: SourceContext | None, reason: RejectionReason, detail: str
) -> NotAssessed:
    return NotAssessed(
        instance=instance,
        context=context,
        rejection=Rejection(source=instance.ref, reason=reason, detail=detail),
    )


def _why_not(verdict: GateVerdict) -> tuple[RejectionReason, str]:
    if isinstance(verdict, Turned | Doubtful):
        return RejectionReason.ORIENTATION, "the image seems to be turned or inverted, and could not be righted"
    return (
        RejectionReason.NOT_CHEST_FRONTAL,
        "the pixels do not look like the upright frontal chest radiographs the model was trained on",
    )
