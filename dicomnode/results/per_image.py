"""The results of one assessed image, by kind: which writer makes which."""

from collections.abc import Callable, Collection, Iterable, Iterator

from dicomnode.domain.answer import ResultInstance, ResultKind
from dicomnode.results.gsps import write_presentation_state
from dicomnode.results.inputs import ImageResultInputs
from dicomnode.results.pdf import write_document
from dicomnode.results.pm import write_parametric_maps
from dicomnode.results.sc import write_finding_heatmaps, write_heatmap

ImageWriter = Callable[[ImageResultInputs], Iterable[ResultInstance]]


def write_image_results(outputs: Collection[ResultKind], inputs: ImageResultInputs) -> Iterator[ResultInstance]:
    """Write the results of these kinds of one assessed image."""
    for kind, writer in _WRITERS.items():
        if kind in outputs:
            yield from writer(inputs)


_WRITERS: dict[ResultKind, ImageWriter] = {
    ResultKind.SECONDARY_CAPTURE: lambda inputs: (write_heatmap(inputs),),
    ResultKind.FINDING_CAPTURE: write_finding_heatmaps,
    ResultKind.PRESENTATION_STATE: write_presentation_state,
    ResultKind.PARAMETRIC_MAP: write_parametric_maps,
    ResultKind.DOCUMENT: write_document,
}
