"""The modules of attributes (PS3.3) that `make.build` gives its objects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag

from dicomnode.domain.identifiers import derive_uid

VIEW_CODES = {
    "PA": ("272479007", "SCT", "postero-anterior"),
    "AP": ("399348003", "SCT", "antero-posterior"),
    "LL": ("399173006", "SCT", "left lateral"),
    "RL": ("399198007", "SCT", "right lateral"),
}


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return a code sequence item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def patient_and_study(
    ds: Dataset,
    name: str,
    patient_id: str,
    birth_date: str | None,
    age: str | None,
    accession: str,
    study: str,
    date: str,
) -> None:
    ds.PatientName, ds.PatientID, ds.PatientSex = name, patient_id, "F"
    ds.PatientBirthDate = birth_date or ""
    if age is not None:
        ds.PatientAge = age
    ds.StudyInstanceUID, ds.StudyID, ds.AccessionNumber = study, "1", accession
    ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = date, "101500", ""


def series_and_equipment(
    ds: Dataset,
    kind: str,
    series: str,
    modality: str | None,
    body_part: str | None,
    view: str | None,
    position: str | None,
    date: str,
) -> None:
    default = {"cr": "CR", "ct": "CT"}.get(kind, "DX")
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = series, 1, 1
    ds.SeriesDate, ds.SeriesTime = date, "101510"
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "Synthetic", "make.py", "1"
    ds.DeviceSerialNumber = "1"
    given = {
        "Modality": None if modality is None else modality or default,
        "BodyPartExamined": body_part,
        "ViewPosition": view,
        "PatientPosition": position,
        "ConversionType": "WSD" if kind.startswith("sc") else None,
        "PatientOrientation": None if kind == "ct" else ["L", "F"],
    }
    set_tags(ds, given)
    types = {"dx": ["DERIVED", "PRIMARY"], "ct": ["ORIGINAL", "PRIMARY", "AXIAL"]}
    ds.ImageType = types.get(kind, ["DERIVED", "SECONDARY"] if kind.startswith("sc") else ["ORIGINAL", "PRIMARY"])
    ds.ContentDate, ds.ContentTime = date, "101520"
    ds.AcquisitionDate, ds.AcquisitionTime = date, "101520"


def pixel_module(ds: Dataset, pixels: npt.NDArray[Any], bits: int, photometric: str, *, signed: bool) -> None:
    colour = pixels.ndim >= 3 and pixels.shape[-1] == 3 and photometric in ("RGB", "YBR_FULL")
    shape = pixels.shape[:-1] if colour else pixels.shape
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = photometric
    if colour:
        ds.PlanarConfiguration = 0
    if len(shape) == 3:
        ds.NumberOfFrames = shape[0]
    ds.Rows, ds.Columns = shape[-2:]
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored = min(bits, ds.BitsAllocated)
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(signed)
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    raw = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    ds.add_new(Tag("PixelData"), "OB" if ds.BitsAllocated == 8 else "OW", raw + b"\x00" * (len(raw) % 2))


def modules_of(
    kind: str, ds: Dataset, view: str | None, view_code: str | tuple[str, str, str] | None, photometric: str
) -> None:
    if kind.startswith("dx"):
        _dx_modules(ds, kind, view, view_code, photometric)
    elif view_code is not None:
        ds.ViewCodeSequence = [code(*_view(view_code))]
    if kind.startswith("sc-multi-frame"):
        _multi_frame_modules(ds)
    if kind == "ct":
        _ct_modules(ds)


def set_tags(ds: Dataset, tags: dict[str, Any]) -> None:
    for keyword, value in tags.items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)


def _dx_modules(
    ds: Dataset, kind: str, view: str | None, view_code: str | tuple[str, str, str] | None, photometric: str
) -> None:
    ds.PresentationIntentType = "FOR PROCESSING" if kind == "dx-for-processing" else "FOR PRESENTATION"
    ds.ImageLaterality = "U"
    in_chest = ds.get("BodyPartExamined") == "CHEST"
    ds.AnatomicRegionSequence = [code("51185008", "SCT", "Chest")] if in_chest else DicomSequence()
    chosen = view_code if view_code is not None else view if view in VIEW_CODES else None
    if chosen is not None:
        item = code(*_view(chosen))
        item.ViewModifierCodeSequence = DicomSequence()
        ds.ViewCodeSequence = [item]
    ds.PositionerType, ds.DetectorType, ds.DetectorID = "NONE", "DIRECT", "1"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = -1 if photometric == "MONOCHROME2" else 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    ds.AcquisitionContextSequence = DicomSequence()
    ds.InstanceCreationDate, ds.InstanceCreationTime = ds.ContentDate, ds.ContentTime


def _multi_frame_modules(ds: Dataset) -> None:
    ds.FrameIncrementPointer = Tag("PageNumberVector")
    ds.PageNumberVector = list(range(1, int(ds.NumberOfFrames) + 1))
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "IDENTITY"


def _ct_modules(ds: Dataset) -> None:
    ds.pop("ViewPosition", None)
    ds.PatientPosition, ds.FrameOfReferenceUID = "HFS", derive_uid("tests", "frame", str(ds.SeriesInstanceUID))
    ds.PositionReferenceIndicator = ""
    ds.ImagePositionPatient, ds.ImageOrientationPatient = ["0", "0", "0"], ["1", "0", "0", "0", "1", "0"]
    ds.SliceThickness, ds.KVP, ds.AcquisitionNumber = "5", "120", "1"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"


def grey_scale(
    ds: Dataset,
    kind: str,
    bits: int,
    window: tuple[float, float] | Sequence[tuple[float, float]] | None,
    function: str | None,
    rescale: tuple[float, float] | None,
    modality_lut: Dataset | None,
    voi_lut: Dataset | None,
    *,
    signed: bool,
) -> None:
    if window is None and voi_lut is None and kind == "dx":
        # DX for presentation shall have a VOI transformation; this one is the whole range.
        middle = 0 if signed else (1 << bits) / 2
        window = (middle, float(1 << bits))
    if window is not None:
        windows = [window] if isinstance(window[0], int | float) else list(window)
        ds.WindowCenter = [f"{centre:g}" for centre, _ in windows]
        ds.WindowWidth = [f"{width:g}" for _, width in windows]
    if function is not None:
        ds.VOILUTFunction = function
    if rescale is not None:
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = f"{rescale[0]:g}", f"{rescale[1]:g}", "US"
    if modality_lut is not None:
        modality_lut.ModalityLUTType = "US"
        ds.ModalityLUTSequence = [modality_lut]
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
            ds.pop(keyword, None)
    if voi_lut is not None:
        ds.VOILUTSequence = [voi_lut]


def add_padding(ds: Dataset, padding: int | tuple[int, int] | None, *, signed: bool) -> None:
    if padding is None:
        return
    value, limit = padding if isinstance(padding, tuple) else (padding, None)
    vr = "SS" if signed else "US"
    ds.add_new(Tag("PixelPaddingValue"), vr, value)
    if limit is not None:
        ds.add_new(Tag("PixelPaddingRangeLimit"), vr, limit)


def _view(view: str | tuple[str, str, str]) -> tuple[str, str, str]:
    return VIEW_CODES[view] if isinstance(view, str) else view
