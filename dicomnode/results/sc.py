"""The heatmap: a Secondary Capture of the radiograph with its Grad-CAM, which every PACS and viewer can show.

Source: PS3.3 A.8.1 (Secondary Capture Image IOD).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from pydicom.valuerep import DSfloat

from dicomnode.domain.answer import ResultInstance, ResultKind
from dicomnode.domain.frame import Frame
from dicomnode.results import codes, part10
from dicomnode.results.context import SourceContext
from dicomnode.results.inputs import ImageResultInputs
from dicomnode.results.overlay import Overlay, draw_result
from dicomnode.results.presentation import findings_with_heat, orientation_of, repairs, title_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heatmap:
    """A heatmap to write: its picture, kind, series number and title; `of`: the label where it is of one finding."""

    overlay: Overlay
    kind: ResultKind
    of: tuple[str, ...]
    series_number: int
    title: str


def write_heatmap(inputs: ImageResultInputs) -> ResultInstance:
    """Write the heatmap of one assessed image."""
    heatmap = _Heatmap(
        overlay=draw_result(inputs),
        kind=ResultKind.SECONDARY_CAPTURE,
        of=(),
        series_number=inputs.equipment.settings.series_number_sc,
        title="AI heatmap",
    )
    return _write(heatmap, inputs)


def write_finding_heatmaps(inputs: ImageResultInputs) -> Iterator[ResultInstance]:
    """Write for each finding that has heat a heatmap of it alone, in a series that is named after it."""
    for finding in findings_with_heat(inputs.assessment):
        heatmap = _Heatmap(
            overlay=draw_result(inputs, only=finding),
            kind=ResultKind.FINDING_CAPTURE,
            of=(finding.label,),
            series_number=inputs.equipment.settings.series_number_sc_finding,
            title=f"AI: {title_of(finding, inputs.assessment)}",
        )
        yield _write(heatmap, inputs)


def _write(heatmap: _Heatmap, inputs: ImageResultInputs) -> ResultInstance:
    overlay, source, frame = heatmap.overlay, inputs.source, inputs.frame
    sop_instance = inputs.identity.instance(heatmap.kind, source.ref.sop_instance, *heatmap.of)
    local_now = source.local(inputs.now)
    # Patient, General Study, Patient Study, SOP Common
    ds = part10.new_dataset(source, SecondaryCaptureImageStorage, sop_instance, inputs.now)
    # General Series; a chest has no laterality
    ds.Modality = "OT"
    ds.SeriesInstanceUID = inputs.identity.series(heatmap.kind, *heatmap.of)
    ds.SeriesNumber = heatmap.series_number
    ds.SeriesDescription = part10.series_description(heatmap.title, inputs.equipment)
    ds.BodyPartExamined = "CHEST"
    # General Equipment
    part10.add_equipment(ds, inputs.equipment)
    # SC Equipment
    ds.ConversionType = "WSD"
    # General Image
    ds.InstanceNumber = inputs.number
    ds.ContentDate = local_now.strftime(part10.DATE)
    ds.ContentTime = local_now.strftime(part10.TIME)
    ds.PatientOrientation = list(orientation_of(frame, source) or ())
    ds.BurnedInAnnotation = "YES"
    _add_derivation(ds, source, frame, overlay)
    part10.add_lossy_history(ds, source)
    # Image Pixel
    _add_pixels(ds, overlay)
    # SC Image
    ds.DateOfSecondaryCapture = local_now.strftime(part10.DATE)
    ds.TimeOfSecondaryCapture = local_now.strftime(part10.TIME)
    _add_spacing(ds, source, frame, overlay.scale)
    return part10.finish(ds, heatmap.kind, source.character_set, (source.ref.sop_instance,))


def _add_derivation(ds: Dataset, source: SourceContext, frame: Frame, overlay: Overlay) -> None:
    """Say from which image the picture was made, and how. Source: PS3.3 C.7.6.1, C.12.4."""
    shown = ", ".join(label.replace("_", " ") for label in overlay.shown) or "none"
    steps = [
        f"Radiograph at {overlay.scale:.0%} of its size",
        *repairs(frame),
    ]
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.DerivationDescription = f"{'. '.join(steps)}. Grad-CAM of: {shown}. Panel with the findings beside it."
    item = Dataset()
    item.ReferencedSOPClassUID = source.ref.sop_class
    item.ReferencedSOPInstanceUID = source.ref.sop_instance
    item.PurposeOfReferenceCodeSequence = [codes.SOURCE_IMAGE]
    item.SpatialLocationsPreserved = "NO"
    ds.SourceImageSequence = [item]


def _add_pixels(ds: Dataset, overlay: Overlay) -> None:
    rows, columns, samples = overlay.pixels.shape
    ds.SamplesPerPixel = samples
    ds.PhotometricInterpretation = "RGB"
    ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    pixels = overlay.pixels.tobytes()
    ds.PixelData = pixels + b"\x00" if len(pixels) % 2 else pixels
    ds["PixelData"].VR = "OB"


def _add_spacing(ds: Dataset, source: SourceContext, frame: Frame, scale: float) -> None:
    """Add the source's Pixel Spacing at the picture's scale; Imager Pixel Spacing is measured at the detector.

    Source: PS3.3 10.7.1.
    """
    if source.spacing is None:
        return
    sides = (source.spacing.row_mm, source.spacing.column_mm)
    row_mm, column_mm = sides if frame.turned_from_source % 2 == 0 else sides[::-1]
    ds.PixelSpacing = [DSfloat(value / scale, auto_format=True) for value in (row_mm, column_mm)]
    if source.spacing.calibration_type:
        ds.PixelSpacingCalibrationType = source.spacing.calibration_type
        ds.PixelSpacingCalibrationDescription = source.spacing.calibration_description or "as in the source image"
