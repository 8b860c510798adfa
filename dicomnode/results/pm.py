"""The Grad-CAM of each finding that has heat as a Parametric Map: numbers on the model's own grid, not a picture.

Cells of the grid that lie mostly outside the body are 0.

Source: PS3.3 A.75 (Parametric Map IOD).
"""

from collections.abc import Iterator

import cv2
import numpy as np
from highdicom.pm import RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ParametricMapStorage
from pydicom.valuerep import DSfloat

from dicomnode.domain.answer import ResultInstance, ResultKind
from dicomnode.domain.finding import Finding
from dicomnode.domain.frame import FloatArray, Frame
from dicomnode.domain.identifiers import derive_uid
from dicomnode.results import codes, part10
from dicomnode.results.body import BoolArray, body_mask
from dicomnode.results.context import SourceContext
from dicomnode.results.inputs import ImageResultInputs
from dicomnode.results.presentation import findings_with_heat, title_of

_KIND = ResultKind.PARAMETRIC_MAP
_MOSTLY = 0.5
_FRAME_TYPE = ["DERIVED", "PRIMARY", "STATIC", "QUANTITY"]


def write_parametric_maps(inputs: ImageResultInputs) -> Iterator[ResultInstance]:
    """Write for each finding that has heat its parametric map, in a series that is named after it."""
    body = body_mask(inputs.frame.pixels)
    maps = {entry.label: entry for entry in inputs.assessment.saliency}
    for finding in findings_with_heat(inputs.assessment):
        if finding.label in maps:
            values = _on_body(maps[finding.label].values, body)
            yield _write(finding, _on_source(values, inputs.frame), inputs)


def _on_body(values: FloatArray, body: BoolArray) -> FloatArray:
    """Return the Grad-CAM, the map's positive part, in the cells of which at least half are body."""
    rows, columns = values.shape
    share = cv2.resize(body.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(np.where(share >= _MOSTLY, np.maximum(values, 0.0), 0.0), dtype=np.float32)


def _on_source(values: FloatArray, frame: Frame) -> FloatArray:
    """Return a map of the upright frame lying as the stored image does."""
    stored = np.rot90(values, -frame.turned_from_source)
    return np.ascontiguousarray(np.fliplr(stored) if frame.mirrored_from_source else stored, dtype=np.float32)


def _write(finding: Finding, values: FloatArray, inputs: ImageResultInputs) -> ResultInstance:
    source, frame = inputs.source, inputs.frame
    local_now = source.local(inputs.now)
    sop_instance = inputs.identity.instance(_KIND, source.ref.sop_instance, finding.label)
    name = title_of(finding, inputs.assessment)
    # Patient, General Study, Patient Study, SOP Common
    ds = part10.new_dataset(source, ParametricMapStorage, sop_instance, inputs.now)
    # General Series, Parametric Map Series
    ds.Modality = "OT"
    ds.SeriesInstanceUID = inputs.identity.series(_KIND, finding.label)
    ds.SeriesNumber = inputs.equipment.settings.series_number_pm
    ds.SeriesDescription = part10.series_description(f"AI map: {name}", inputs.equipment)
    ds.BodyPartExamined = "CHEST"
    # Frame of Reference: one of its own, for a projection has no place in the patient
    ds.FrameOfReferenceUID = derive_uid("frame of reference", sop_instance)
    ds.PositionReferenceIndicator = None
    # General Equipment, Enhanced General Equipment
    part10.add_equipment(ds, inputs.equipment)
    # General Image, Parametric Map Image
    ds.InstanceNumber = inputs.number
    ds.ContentDate = local_now.strftime(part10.DATE)
    ds.ContentTime = local_now.strftime(part10.TIME)
    ds.PatientOrientation = list(source.patient_orientation or ())
    _add_image(ds, name, source)
    # Floating Point Image Pixel
    _add_pixels(ds, values)
    # Multi-frame Functional Groups, Multi-frame Dimension
    _add_functional_groups(ds, values, source, frame)
    _add_dimension(ds, sop_instance)
    # Acquisition Context, Common Instance Reference
    ds.AcquisitionContextSequence = []
    ds.ReferencedSeriesSequence = [_series_item(source)]
    return part10.finish(ds, _KIND, source.character_set, (source.ref.sop_instance,))


def _add_image(ds: Dataset, name: str, source: SourceContext) -> None:
    """Add the Parametric Map Image module. Source: PS3.3 C.8.32.2."""
    ds.ImageType = _FRAME_TYPE
    ds.ContentQualification = "RESEARCH"
    ds.ContentLabel = "AI_MAP"
    ds.ContentDescription = f"Grad-CAM of {name} on the model's grid"[:64]
    ds.ContentCreatorName = None
    ds.BurnedInAnnotation = "NO"
    ds.RecognizableVisualFeatures = "NO"
    ds.PresentationLUTShape = "IDENTITY"
    part10.add_lossy_history(ds, source)


def _add_pixels(ds: Dataset, values: FloatArray) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = values.shape
    ds.NumberOfFrames = 1
    ds.BitsAllocated = 32
    ds.FloatPixelData = values.astype("<f4").tobytes()


def _add_functional_groups(ds: Dataset, values: FloatArray, source: SourceContext, frame: Frame) -> None:
    """Add the groups of the one frame: what it measures, its spacing as far as it is known, its source image."""
    shared = Dataset()
    shared.PixelMeasuresSequence = [_measures(values, source, frame)]
    frame_type = Dataset()
    frame_type.FrameType = _FRAME_TYPE
    shared.ParametricMapFrameTypeSequence = [frame_type]
    shared.RealWorldValueMappingSequence = [_mapping(values)]
    window = Dataset()
    top = max(float(values.max()), float(np.finfo(np.float32).tiny))
    window.WindowCenter, window.WindowWidth = (DSfloat(value, auto_format=True) for value in (top / 2, top))
    window.VOILUTFunction = "LINEAR_EXACT"
    shared.FrameVOILUTSequence = [window]
    # A projection has no position and no orientation in the patient: the groups are there, as they must be, and empty.
    shared.PlanePositionSequence = [Dataset()]
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PixelValueTransformationSequence = [_identity()]
    shared.DerivationImageSequence = [_derivation(source)]
    per_frame = Dataset()
    content = Dataset()
    content.DimensionIndexValues = [1]
    content.StackID, content.InStackPositionNumber = "1", 1
    per_frame.FrameContentSequence = [content]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = [per_frame]


def _measures(values: FloatArray, source: SourceContext, frame: Frame) -> Dataset:
    """Return the size of the map's cells where the source states a Pixel Spacing that holds in the patient."""
    item = Dataset()
    if source.spacing is not None:
        upright = frame.pixels.shape
        rows, columns = upright if frame.turned_from_source % 2 == 0 else upright[::-1]
        cells = (rows / values.shape[0], columns / values.shape[1])
        sides = (source.spacing.row_mm * cells[0], source.spacing.column_mm * cells[1])
        item.PixelSpacing = [DSfloat(value, auto_format=True) for value in sides]
    return item


def _identity() -> Dataset:
    item = Dataset()
    item.RescaleIntercept, item.RescaleSlope, item.RescaleType = "0", "1", "US"
    return item


def _mapping(values: FloatArray) -> RealWorldValueMapping:
    return RealWorldValueMapping(
        lut_label="GRAD_CAM",
        lut_explanation="Part of the logit that comes from here",
        unit=codes.NO_UNITS,
        value_range=(0.0, float(values.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.CLASS_ACTIVATION,
    )


def _derivation(source: SourceContext) -> Dataset:
    item = Dataset()
    image = _image_item(source)
    image.PurposeOfReferenceCodeSequence = [codes.SOURCE_IMAGE]
    image.SpatialLocationsPreserved = "YES"
    item.SourceImageSequence = [image]
    item.DerivationDescription = "Grad-CAM over the whole of the source image"
    item.DerivationCodeSequence = [codes.CLASS_ACTIVATION]
    return item


def _image_item(source: SourceContext) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.ref.sop_class
    item.ReferencedSOPInstanceUID = source.ref.sop_instance
    return item


def _series_item(source: SourceContext) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = source.ref.series
    item.ReferencedInstanceSequence = [_image_item(source)]
    return item


def _add_dimension(ds: Dataset, sop_instance: str) -> None:
    """Add the one dimension of the one frame: its place in the stack. Source: PS3.3 C.7.6.17."""
    organization = Dataset()
    organization.DimensionOrganizationUID = derive_uid("dimension organization", sop_instance)
    index = Dataset()
    index.DimensionOrganizationUID = organization.DimensionOrganizationUID
    index.DimensionIndexPointer = Tag("InStackPositionNumber")
    index.FunctionalGroupPointer = Tag("FrameContentSequence")
    ds.DimensionOrganizationSequence = [organization]
    ds.DimensionIndexSequence = [index]
