"""The results of one assessed image, by kind: which writer makes which."""

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from typing import Protocol

from dicomnode.domain.answer import ResultInstance, ResultKind
from dicomnode.domain.finding import Assessment
from dicomnode.domain.frame import Frame
from dicomnode.results.context import Equipment, ResultIdentity, SourceContext
from dicomnode.results.gsps import write_presentation_state
from dicomnode.results.pdf import write_document
from dicomnode.results.pm import write_parametric_maps
from dicomnode.results.sc import write_finding_heatmaps, write_heatmap


class _Writer(Protocol):
    def __call__(
        self,
        *,
        source: SourceContext,
        frame: Frame,
        assessment: Assessment,
        equipment: Equipment,
        identity: ResultIdentity,
        now: datetime,
        number: int,
    ) -> Iterable[ResultInstance]: ...


def write_image_results(
    outputs: Collection[ResultKind],
    *,
    source: SourceContext,
    frame: Frame,
    assessment: Assessment,
    equipment: Equipment,
    identity: ResultIdentity,
    now: datetime,
    number: int,
) -> Iterator[ResultInstance]:
    """Write the results of these kinds of one assessed image; `number` counts the images of the study."""
    for kind, writer in _WRITERS.items():
        if kind in outputs:
            yield from writer(
                source=source,
                frame=frame,
                assessment=assessment,
                equipment=equipment,
                identity=identity,
                now=now,
                number=number,
            )


def _heatmap(
    *,
    source: SourceContext,
    frame: Frame,
    assessment: Assessment,
    equipment: Equipment,
    identity: ResultIdentity,
    now: datetime,
    number: int,
) -> Iterable[ResultInstance]:
    return (
        write_heatmap(
            source=source,
            frame=frame,
            assessment=assessment,
            equipment=equipment,
            identity=identity,
            now=now,
            number=number,
        ),
    )


_WRITERS: dict[ResultKind, _Writer] = {
    ResultKind.SECONDARY_CAPTURE: _heatmap,
    ResultKind.FINDING_CAPTURE: write_finding_heatmaps,
    ResultKind.PRESENTATION_STATE: write_presentation_state,
    ResultKind.PARAMETRIC_MAP: write_parametric_maps,
    ResultKind.DOCUMENT: write_document,
}
