"""What a radiograph says of itself, read once: everything that the rules, the pixels and the results need.

`header_of` reads a data set of unknown quality into a frozen `RadiographHeader`. No other module looks into the data
set of a received image, so no two parts of the node can read an attribute differently. What cannot be understood is
absent: an empty text, an empty tuple or None. What was understood although the standard has it otherwise is listed in
`repairs`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForProcessing

from dicomnode.dicom.attributes import (
    day,
    integer,
    items,
    number,
    numbers,
    text,
    texts,
)
from dicomnode.dicom.character_set import Terms, declared_terms
from dicomnode.dicom.greyscale import GreyscaleTags, greyscale_tags_of
from dicomnode.dicom.hostile import HOSTILE_DATA_RAISES, quiet
from dicomnode.dicom.identity import CodedText, PatientIdentity, StudyIdentity, coded, patient_of, study_of
from dicomnode.dicom.reader import Repair, read_and_repair, ref_of
from dicomnode.dicom.writing import is_code_string
from dicomnode.domain.frame import Righting, righting_of
from dicomnode.domain.instance import InstanceRef

_SPACING_MM = (0.01, 10.0)
_IMAGE_DESCRIPTIONS = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "AcquisitionDeviceProcessingCode",
    "PerformedProcedureStepDescription",
    "AcquisitionProtocolName",
)
_STUDY_DESCRIPTIONS = ("RequestedProcedureDescription", "StudyDescription")
_IMAGE_CODES = ("PerformedProtocolCodeSequence", "SeriesDescriptionCodeSequence")
_STUDY_CODES = ("ProcedureCodeSequence", "RequestedProcedureCodeSequence")
_REGIONS = ("AnatomicRegionSequence", "PrimaryAnatomicStructureSequence")
_LEFT_OUT = "left out, since it is not of the form of the standard"
_DIRECTIONS = frozenset("APRLHF")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What one element says: its keyword, its words, and its code where it is coded."""

    attribute: str
    words: str
    code: CodedText | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionTags:
    """What the object says of body part and projection, each in the order of its elements.

    `image_descriptions` describe the image or its series, `study_descriptions` the whole study.
    """

    view_position: Statement
    view_codes: tuple[Statement, ...]
    patient_position: Statement
    body_part_examined: Statement
    body_regions: tuple[Statement, ...]
    image_descriptions: tuple[Statement, ...]
    study_descriptions: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureTags:
    """By which images of one exposure are known to be so; "" and () where nothing is stated.

    `sources`: SOP Instance UIDs of the images that this one was derived from; `has_sources`: whether it names any.
    Source: PS3.3 C.7.6.1, C.8.7.10.
    """

    for_processing: bool
    irradiation_event: tuple[str, ...]
    acquired_at: str
    sources: tuple[str, ...]
    has_sources: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelTags:
    """The Image Pixel module as it was sent; None where it does not say. Source: PS3.3 C.7.6.3.

    `data_bytes`: the size of Pixel Data as it was sent, encapsulated if it was. `data_in_words`: whether it was sent as
    words of 16 bits (OW), whose bytes big endian exchanges.
    """

    rows: int | None
    columns: int | None
    samples_per_pixel: int | None
    photometric_interpretation: str
    planar_configuration: int | None
    bits_allocated: int | None
    bits_stored: int | None
    high_bit: int | None
    pixel_representation: int | None
    number_of_frames: int | None
    padding_value: int | None
    padding_range_limit: int | None
    data_bytes: int
    data_in_words: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Aperture:
    """A display shutter or a collimator, in rows and columns counted from 1. Source: PS3.3 C.7.6.11, C.8.7.3.

    `edges`: left, right, upper, lower, each None where it is not stated. `centre`: (row, column). `vertices`: row and
    column of each corner, one after the other.
    """

    shapes: frozenset[str]
    edges: tuple[int | None, int | None, int | None, int | None]
    centre: tuple[float, ...]
    radius: float | None
    vertices: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSpacing:
    """The distances between rows and between columns, and how they were calibrated if that is stated.

    Source: PS3.3 10.7.1.
    """

    row_mm: float
    column_mm: float
    calibration_type: str = ""
    calibration_description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossyTags:
    """What the object states of lossy compression. Source: PS3.3 C.7.6.1.1.5."""

    flag: str
    ratios: tuple[float, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RadiographHeader:
    """Everything that one received object says of itself, as far as the node uses it.

    `patient_orientation`: the directions of a row and of a column, None unless both are well formed; `righting` is
    what it takes by them to stand the image upright. `pixel_spacing` is calibrated or at least meant for measuring;
    `detector_spacing` is that at the detector. `makers`: Manufacturer's Model Names of the equipment that made the
    object or contributed to it. `timezone`: the offset from UTC as +HHMM or -HHMM.
    """

    ref: InstanceRef
    transfer_syntax: str
    character_set: Terms
    patient: PatientIdentity
    study: StudyIdentity
    patient_age: str
    birth_date: date | None
    study_date: date | None
    timezone: str
    makers: tuple[str, ...]
    modality: str
    image_type: tuple[str, ...]
    burned_in_annotation: str
    conversion_type: str
    projection: ProjectionTags
    exposure: ExposureTags
    pixels: PixelTags
    greyscale: GreyscaleTags
    shutter: Aperture
    collimator: Aperture
    patient_orientation: tuple[str, str] | None
    pixel_spacing: PixelSpacing | None
    detector_spacing: PixelSpacing | None
    lossy: LossyTags
    repairs: tuple[Repair, ...] = ()

    @property
    def righting(self) -> Righting | None:
        """Return how a frontal image becomes upright by its Patient Orientation, None where that does not say."""
        return righting_of(self.patient_orientation) if self.patient_orientation else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Radiograph:
    """A received object: what it says of itself, and its Pixel Data as it was sent, empty where there is none."""

    header: RadiographHeader
    pixel_data: bytes = field(repr=False)


def read_radiograph(part10: bytes | Path) -> Radiograph:
    """Read a DICOM file.

    Raises: UnreadableObject.
    """
    ds, repairs = read_and_repair(part10)
    return Radiograph(header=header_of(ds, repairs), pixel_data=pixel_data_of(ds))


def read_header(part10: bytes | Path) -> RadiographHeader:
    """Read what a DICOM file says of itself.

    Raises: UnreadableObject.
    """
    return header_of(*read_and_repair(part10))


def header_of(ds: Dataset, repairs: tuple[Repair, ...] = ()) -> RadiographHeader:
    """Read what a data set says of itself; `repairs` were made before, when it was read.

    Raises: UnreadableObject when one of the four UIDs that name it is missing.
    """
    with quiet():
        header = RadiographHeader(
            ref=ref_of(ds),
            transfer_syntax=_transfer_syntax(ds),
            character_set=declared_terms(ds),
            patient=patient_of(ds),
            study=study_of(ds),
            patient_age=text(ds, "PatientAge").upper(),
            birth_date=day(ds, "PatientBirthDate"),
            study_date=day(ds, "StudyDate"),
            timezone=text(ds, "TimezoneOffsetFromUTC"),
            makers=_makers(ds),
            modality=text(ds, "Modality").upper(),
            image_type=tuple(value.upper() for value in texts(ds, "ImageType")),
            burned_in_annotation=text(ds, "BurnedInAnnotation").upper(),
            conversion_type=text(ds, "ConversionType").upper(),
            projection=_projection(ds),
            exposure=_exposure(ds),
            pixels=_pixels(ds),
            greyscale=greyscale_tags_of(ds),
            shutter=_aperture(ds, "Shutter", "VerticesOfThePolygonalShutter"),
            collimator=_aperture(ds, "Collimator", "VerticesOfThePolygonalCollimator"),
            patient_orientation=_orientation(ds),
            pixel_spacing=_spacing(ds, "PixelSpacing"),
            detector_spacing=_spacing(ds, "ImagerPixelSpacing"),
            lossy=_lossy(ds),
        )
        return replace(header, repairs=(*repairs, *_repairs(ds, header)))


def pixel_data_of(ds: Dataset) -> bytes:
    """Return Pixel Data as it was sent, encapsulated if it was; empty when there is none."""
    with quiet():
        try:
            value = ds["PixelData"].value if "PixelData" in ds else b""
        except HOSTILE_DATA_RAISES:
            return b""
    return bytes(value) if isinstance(value, bytes | bytearray) else b""


def _repairs(ds: Dataset, header: RadiographHeader) -> Iterator[Repair]:
    """Yield what was mended or left out because it is not of the form that the standard has."""
    patient, study, grey = header.patient, header.study, header.greyscale
    for keyword, taken in (
        ("PatientBirthDate", patient.birth_date),
        ("PatientSex", patient.sex),
        ("PatientAge", patient.age),
        ("PatientSize", patient.size_m),
        ("PatientWeight", patient.weight_kg),
        ("StudyDate", study.date),
        ("StudyTime", study.time),
        ("StudyDescription", study.description),
    ):
        sent = text(ds, keyword)
        if sent != taken:
            yield Repair(attribute=keyword, what="brought into the form of the standard" if taken else _LEFT_OUT)
    for keyword, kept in (
        ("PatientOrientation", header.patient_orientation is not None),
        ("PixelSpacing", header.pixel_spacing is not None),
        ("WindowCenter", bool(grey.windows)),
        ("RescaleSlope", grey.rescale is not None),
    ):
        if texts(ds, keyword) and not kept:
            yield Repair(attribute=keyword, what=_LEFT_OUT)
    for keyword, count in (("VOILUTSequence", len(grey.voi_tables)), ("ModalityLUTSequence", _count(grey))):
        if len(items(ds, keyword)) > count:
            yield Repair(attribute=keyword, what=_LEFT_OUT)


def _count(grey: GreyscaleTags) -> int:
    return 0 if grey.modality_table is None else 1


def _transfer_syntax(ds: Dataset) -> str:
    meta = getattr(ds, "file_meta", None)
    return text(meta, "TransferSyntaxUID") if isinstance(meta, Dataset) else ""


def _makers(ds: Dataset) -> tuple[str, ...]:
    devices = (ds, *items(ds, "ContributingEquipmentSequence"))
    return tuple(model for device in devices if (model := text(device, "ManufacturerModelName")))


def _projection(ds: Dataset) -> ProjectionTags:
    return ProjectionTags(
        view_position=_statement(ds, "ViewPosition"),
        view_codes=_coded_statements(ds, "ViewCodeSequence"),
        patient_position=_statement(ds, "PatientPosition"),
        body_part_examined=_statement(ds, "BodyPartExamined"),
        body_regions=_coded_statements(ds, *_REGIONS),
        image_descriptions=_descriptions(ds, _IMAGE_DESCRIPTIONS, _IMAGE_CODES),
        study_descriptions=_descriptions(ds, _STUDY_DESCRIPTIONS, _STUDY_CODES),
    )


def _statement(ds: Dataset, keyword: str) -> Statement:
    return Statement(attribute=keyword, words=text(ds, keyword))


def _coded_statements(ds: Dataset, *keywords: str) -> tuple[Statement, ...]:
    read = ((keyword, coded(item)) for keyword in keywords for item in items(ds, keyword))
    return tuple(Statement(attribute=keyword, words=code.meaning, code=code) for keyword, code in read)


def _descriptions(ds: Dataset, fields: tuple[str, ...], codes: tuple[str, ...]) -> tuple[Statement, ...]:
    described = (Statement(attribute=keyword, words=" ; ".join(texts(ds, keyword))) for keyword in fields)
    return (*(one for one in described if one.words), *_coded_statements(ds, *codes))


def _exposure(ds: Dataset) -> ExposureTags:
    acquired = (text(ds, "AcquisitionDate"), text(ds, "AcquisitionTime"))
    intent = text(ds, "PresentationIntentType").upper()
    sources = items(ds, "SourceImageSequence")
    return ExposureTags(
        for_processing=intent == "FOR PROCESSING" or text(ds, "SOPClassUID") == DigitalXRayImageStorageForProcessing,
        irradiation_event=texts(ds, "IrradiationEventUID"),
        acquired_at="".join(acquired) if all(acquired) else text(ds, "AcquisitionDateTime"),
        sources=tuple(uid for item in sources if (uid := text(item, "ReferencedSOPInstanceUID"))),
        has_sources=bool(sources),
    )


def _pixels(ds: Dataset) -> PixelTags:
    return PixelTags(
        rows=integer(ds, "Rows"),
        columns=integer(ds, "Columns"),
        samples_per_pixel=integer(ds, "SamplesPerPixel"),
        photometric_interpretation=text(ds, "PhotometricInterpretation").upper(),
        planar_configuration=integer(ds, "PlanarConfiguration"),
        bits_allocated=integer(ds, "BitsAllocated"),
        bits_stored=integer(ds, "BitsStored"),
        high_bit=integer(ds, "HighBit"),
        pixel_representation=integer(ds, "PixelRepresentation"),
        number_of_frames=integer(ds, "NumberOfFrames"),
        padding_value=integer(ds, "PixelPaddingValue"),
        padding_range_limit=integer(ds, "PixelPaddingRangeLimit"),
        data_bytes=len(pixel_data_of(ds)),
        data_in_words="PixelData" in ds and ds.get_item("PixelData").VR == "OW",
    )


def _aperture(ds: Dataset, name: str, vertices: str) -> Aperture:
    return Aperture(
        shapes=frozenset(shape.upper() for shape in texts(ds, f"{name}Shape")),
        edges=(
            integer(ds, f"{name}LeftVerticalEdge"),
            integer(ds, f"{name}RightVerticalEdge"),
            integer(ds, f"{name}UpperHorizontalEdge"),
            integer(ds, f"{name}LowerHorizontalEdge"),
        ),
        centre=numbers(ds, f"CenterOfCircular{name}"),
        radius=number(ds, f"RadiusOfCircular{name}"),
        vertices=numbers(ds, vertices),
    )


def _orientation(ds: Dataset) -> tuple[str, str] | None:
    """Return the directions of a row and a column, of up to three letters each. Source: PS3.3 C.7.6.1.1.1."""
    directions = [value.upper() for value in texts(ds, "PatientOrientation")]
    if len(directions) != 2 or not all(len(value) <= 3 and set(value) <= _DIRECTIONS for value in directions):
        return None
    return directions[0], directions[1]


def _spacing(ds: Dataset, keyword: str) -> PixelSpacing | None:
    """Return a spacing that a radiograph can have."""
    found = numbers(ds, keyword)
    if len(found) != 2 or not all(_SPACING_MM[0] <= value <= _SPACING_MM[1] for value in found):
        return None
    calibration = text(ds, "PixelSpacingCalibrationType").upper()
    return PixelSpacing(
        row_mm=found[0],
        column_mm=found[1],
        calibration_type=calibration if calibration in {"GEOMETRY", "FIDUCIAL"} else "",
        calibration_description=text(ds, "PixelSpacingCalibrationDescription")[:64],
    )


def _lossy(ds: Dataset) -> LossyTags:
    return LossyTags(
        flag=text(ds, "LossyImageCompression"),
        ratios=numbers(ds, "LossyImageCompressionRatio"),
        methods=tuple(value for value in texts(ds, "LossyImageCompressionMethod") if is_code_string(value)),
    )
