"""What results are written from: one argument for the results of an image, one for the report of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from dicomnode.domain.answer import Rejection
from dicomnode.domain.finding import Assessment
from dicomnode.domain.frame import Frame
from dicomnode.domain.instance import InstanceRef
from dicomnode.results.context import Equipment, ResultIdentity, SourceContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResultInputs:
    """Everything that the results of one assessed image depend on; `number` counts the images of the study from 1."""

    source: SourceContext
    frame: Frame
    assessment: Assessment
    equipment: Equipment
    identity: ResultIdentity
    now: datetime
    number: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInputs:
    """Everything that the report of one version of a study depends on.

    `sources` and `frames` are by SOP Instance UID. Of a study with assessments, `sources` holds at least the images
    that were assessed, and `frames` their pixels; of a study that was not analysed, `sources` holds the rejected images
    that could be read. `predecessors` are the reports of the study's former version.
    """

    sources: Mapping[str, SourceContext]
    assessments: Sequence[Assessment]
    rejections: Sequence[Rejection]
    predecessors: Sequence[InstanceRef]
    equipment: Equipment
    identity: ResultIdentity
    now: datetime
    frames: Mapping[str, Frame] = field(default_factory=dict)
