"""Builders of synthetic, conformant DICOM objects: every test that needs an image takes it from here.

`build("cr" | "dx" | "dx-for-processing" | "sc" | "sc-multi-frame" | "ct", ...)` returns a data set with uncompressed
pixels; keyword arguments change what they name, and None removes it. `encode` turns a data set into Part 10 bytes.
"""

import functools
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom import uid as uids
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag

from dicomnode.domain.identifiers import derive_uid
from dicomnode.domain.instance import InstanceRef
from tests.processes import missing_peer

P, T = ParamSpec("P"), TypeVar("T")

CANARY_NAME = "CANARY^NAMEZQX"
CANARY_ID = "CANARYIDZQX"
CANARY_ACCESSION = "CANARYACCZQX"
CANARY_BIRTH_DATE = "19430217"
CANARIES = ("CANARY", "NAMEZQX", "IDZQX", "ACCZQX", CANARY_BIRTH_DATE)
"""Strings that stand only in patient data of the builders' objects: none may reach a log, a ledger or a file name."""

SOP_CLASSES = {
    "cr": uids.ComputedRadiographyImageStorage,
    "dx": uids.DigitalXRayImageStorageForPresentation,
    "dx-for-processing": uids.DigitalXRayImageStorageForProcessing,
    "sc": uids.SecondaryCaptureImageStorage,
    "sc-multi-frame": uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    "sc-multi-frame-word": uids.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    "ct": uids.CTImageStorage,
}
VIEW_CODES = {
    "PA": ("272479007", "SCT", "postero-anterior"),
    "AP": ("399348003", "SCT", "antero-posterior"),
    "LL": ("399173006", "SCT", "left lateral"),
    "RL": ("399198007", "SCT", "right lateral"),
}
_LOSSY = {
    uids.JPEGBaseline8Bit: "ISO_10918_1",
    uids.JPEGExtended12Bit: "ISO_10918_1",
    uids.JPEGLSNearLossless: "ISO_14495_1",
    uids.JPEG2000: "ISO_15444_1",
    uids.HTJ2K: "ISO_15444_15",
}
_DCMCJPEG = {
    uids.JPEGBaseline8Bit: ["+eb", "+q", "95"],
    uids.JPEGExtended12Bit: ["+ee", "+q", "95"],
    uids.JPEGLossless: ["+el"],
    uids.JPEGLosslessSV1: ["+e1"],
}


@functools.cache
def chest(rows: int = 640, columns: int = 560, *, seed: int = 1, collimator: int = 0) -> npt.NDArray[np.float32]:
    """Return a plausible frontal chest: (rows, columns) float32 in [0, 1]; 1 is bright (dense).

    Two dark lungs, a bright mediastinum with the heart to the viewer's right, ribs, clavicles, diaphragm, air beside
    the shoulders. `collimator`: width in pixels of a bright, unexposed border.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns]
    y, x = (y + 0.5) / rows * 2 - 1, (x + 0.5) / columns * 2 - 1
    jitter = random.uniform(-0.02, 0.02, 6)

    def blob(cx: float, cy: float, rx: float, ry: float, soft: float = 0.12) -> npt.NDArray[np.float64]:
        radius = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
        return np.asarray(1 / (1 + np.exp((radius - 1) / soft)))

    body = blob(0, 0.35, 1.02, 1.42, 0.035)
    image = 0.06 + 0.55 * body
    right, left = blob(-0.42 + jitter[0], -0.05, 0.33, 0.62), blob(0.43 + jitter[1], -0.05, 0.31, 0.60)
    lungs = np.maximum(right, left)
    image -= 0.37 * lungs
    image += 0.14 * np.exp(-((x / 0.13) ** 2)) * body
    image += 0.38 * blob(0.14 + jitter[2], 0.27 + jitter[3], 0.33, 0.27) * (0.35 + 0.65 * lungs)
    image += 0.16 * (1 / (1 + np.exp(-(y - 0.55 + 0.15 * x**2) / 0.04))) * body
    arcs = np.sin(2 * np.pi * (4.6 * y - 1.8 * x**2 + jitter[4]))
    image += 0.035 * np.clip(arcs, 0, 1) * (lungs + 0.15)
    hila = blob(-0.16, 0.02, 0.10, 0.16, 0.3) + blob(0.17, 0.0, 0.09, 0.15, 0.3)
    image += 0.08 * hila
    clavicles = np.exp(-(((y + 0.66 - 0.16 * np.abs(x)) / 0.035) ** 2)) * (np.abs(x) > 0.1) * (np.abs(x) < 0.75)
    image += 0.10 * clavicles * body
    texture = cv2.resize(random.normal(0, 1, (max(2, rows // 8), max(2, columns // 8))), (columns, rows))
    image += 0.012 * texture + 0.004 * random.normal(0, 1, (rows, columns))
    if collimator:
        image[:collimator] = image[-collimator:] = image[:, :collimator] = image[:, -collimator:] = 0.97
    pixels = np.asarray(np.clip(image, 0, 1), dtype=np.float32)
    pixels.setflags(write=False)
    return pixels


def stored(
    pixels: npt.NDArray[np.float32], *, bits: int = 12, photometric: str = "MONOCHROME2", signed: bool = False
) -> npt.NDArray[np.integer[Any]]:
    """Quantise [0, 1] pixels (1 bright) to stored values of a photometric interpretation."""
    values = 1 - pixels if photometric == "MONOCHROME1" else pixels
    top = (1 << bits) - 1
    integers = np.round(values * top).astype(np.int64) - ((1 << (bits - 1)) if signed else 0)
    container = 8 if bits <= 8 else 16
    return integers.astype(f"{'i' if signed else 'u'}{container // 8}")


def _without_warnings(function: Callable[P, T]) -> Callable[P, T]:
    """Let a builder write the invalid values that it is asked for."""

    @functools.wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return quiet


@_without_warnings
def build(
    kind: str = "dx",
    *,
    pixels: npt.NDArray[Any] | None = None,
    rows: int = 640,
    columns: int = 560,
    seed: int = 1,
    bits: int = 12,
    signed: bool = False,
    photometric: str = "MONOCHROME2",
    window: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
    window_function: str | None = None,
    rescale: tuple[float, float] | None = None,
    modality_lut: Dataset | None = None,
    voi_lut: Dataset | None = None,
    padding: int | tuple[int, int] | None = None,
    modality: str | None = "",
    body_part: str | None = "CHEST",
    view: str | None = "PA",
    view_code: str | tuple[str, str, str] | None = None,
    patient_position: str | None = None,
    age: str | None = "061Y",
    birth_date: str | None = CANARY_BIRTH_DATE,
    study_date: str = "20240229",
    patient_name: str = CANARY_NAME,
    patient_id: str = CANARY_ID,
    accession: str = CANARY_ACCESSION,
    character_set: str | list[str] | None = "ISO_IR 100",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    spacing_mm: tuple[float, float] | None = (0.4, 0.4),
    frames: int = 1,
    tags: dict[str, Any] | None = None,
) -> Dataset:
    """Return a data set of a kind in `SOP_CLASSES` with file meta information (Explicit VR Little Endian).

    `pixels`: stored values, (rows, columns[, 3]) or, for several frames, (frames, rows, columns); None: a synthetic
    chest quantised to `bits`. `tags` are set last, by keyword; a value of None deletes.
    """
    multi = kind.startswith("sc-multi-frame")
    frames = 2 if multi and frames == 1 and pixels is None else frames
    bits = 8 if kind == "sc-multi-frame" else bits
    if pixels is None:
        pixels = stored(chest(rows, columns, seed=seed), bits=bits, photometric=photometric, signed=signed)
        pixels = np.stack([pixels] * frames) if frames > 1 else pixels
    study = study_uid or derive_uid("tests", "study", str(seed))
    series = series_uid or derive_uid("tests", "series", study, kind)
    instance = sop_uid or derive_uid("tests", "instance", series, str(seed))

    ds = Dataset()
    if character_set is not None:
        ds.SpecificCharacterSet = character_set
    _patient_and_study(ds, patient_name, patient_id, birth_date, age, accession, study, study_date)
    _series_and_equipment(ds, kind, series, modality, body_part, view, patient_position, study_date)
    ds.SOPClassUID, ds.SOPInstanceUID = SOP_CLASSES[kind], instance
    _pixel_module(
        ds,
        pixels,
        bits,
        photometric,
        signed=signed,
    )
    _modules_of(kind, ds, view, view_code, photometric)
    _grey_scale(ds, kind, bits, window, window_function, rescale, modality_lut, voi_lut, signed=signed)
    _padding(ds, padding, signed=signed)
    if spacing_mm is not None:
        keyword = "ImagerPixelSpacing" if kind in ("cr", "dx", "dx-for-processing") else "PixelSpacing"
        setattr(ds, keyword, [str(value) for value in spacing_mm])
    _set_tags(ds, tags or {})
    ds.file_meta = _meta(ds, uids.ExplicitVRLittleEndian)
    return ds


def ref_of(ds: Dataset) -> InstanceRef:
    """Return the identifiers of a data set."""
    return InstanceRef(
        study=str(ds.StudyInstanceUID),
        series=str(ds.SeriesInstanceUID),
        sop_class=str(ds.SOPClassUID),
        sop_instance=str(ds.SOPInstanceUID),
    )


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return a code sequence item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def lut(values: Sequence[int], *, first: int = 0, bits: int = 16, explanation: str = "LUT") -> Dataset:
    """Return a Modality or VOI LUT item of 16-bit entries."""
    item = Dataset()
    length = 0 if len(values) == 65536 else len(values)
    item.add_new(Tag("LUTDescriptor"), "US" if first >= 0 else "SS", [length, first, bits])
    item.LUTExplanation = explanation
    item.add_new(Tag("LUTData"), "OW", np.asarray(values, dtype="<u2").tobytes())
    return item


@_without_warnings
def encode(ds: Dataset, transfer_syntax: str = uids.ExplicitVRLittleEndian, **options: Any) -> bytes:
    """Return Part 10 bytes with zeros as preamble; `ds` stays as it is.

    JPEG of 1992 needs DCMTK's dcmcjpeg and skips the test without it; for HTJ2K see `htj2k`. `options` go to
    pydicom's encoder (`j2k_cr`, `jls_error` ...).
    """
    syntax = uids.UID(transfer_syntax)
    if syntax in _DCMCJPEG:
        return _encode_with_dcmtk(ds, syntax)
    copy = dcmread(BytesIO(_write(ds, uids.ExplicitVRLittleEndian)))
    if syntax.is_compressed and not syntax.is_deflated:
        if syntax == uids.JPEG2000 and not options:
            options = {"j2k_cr": [10]}
        if syntax == uids.JPEGLSNearLossless and not options:
            options = {"jls_error": 2}
        copy.compress(syntax, generate_instance_uid=False, **options)
        _mark_lossy(copy, syntax)
    return _write(copy, syntax)


def htj2k(*, lossless: bool) -> tuple[Dataset, npt.NDArray[np.uint16], bytes]:
    """Return an object, its stored values, and its Part 10 bytes in HTJ2K.

    No library among the dependencies encodes HTJ2K; the frames in tests/data were made by OpenJPH of this synthetic
    chest, and stay as they are.
    """
    values = stored(chest(160, 128, seed=7), bits=16)
    ds = build("cr", pixels=values, bits=16)
    frame = (Path(__file__).parent / "data" / f"chest-htj2k-{'lossless' if lossless else 'lossy'}.j2c").read_bytes()
    syntax = uids.HTJ2KLossless if lossless else uids.HTJ2K
    copy = dcmread(BytesIO(_write(ds, uids.ExplicitVRLittleEndian)))
    return ds, values, _write(with_frame(copy, frame, syntax), syntax)


def with_frame(ds: Dataset, frame: bytes, syntax: uids.UID) -> Dataset:
    """Put a compressed frame into a data set in place of its pixels."""
    ds.add_new(Tag("PixelData"), "OB", encapsulate([frame]))
    ds["PixelData"].is_undefined_length = True
    ds.file_meta = _meta(ds, syntax)
    _mark_lossy(ds, syntax)
    return ds


def write(ds: Dataset, path: Path, transfer_syntax: str = uids.ExplicitVRLittleEndian, **options: Any) -> Path:
    """Write `encode(ds, transfer_syntax)` to `path` and return it."""
    path.write_bytes(encode(ds, transfer_syntax, **options))
    return path


def _write(ds: Dataset, syntax: uids.UID) -> bytes:
    ds.file_meta = _meta(ds, syntax)
    buffer = BytesIO()
    dcmwrite(
        buffer, ds, enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
    )
    return buffer.getvalue()


def _encode_with_dcmtk(ds: Dataset, syntax: uids.UID) -> bytes:
    if shutil.which("dcmcjpeg") is None:
        missing_peer("DCMTK's dcmcjpeg is not installed")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.dcm", Path(folder) / "out.dcm"
        source.write_bytes(_write(ds, uids.ExplicitVRLittleEndian))
        command = ["dcmcjpeg", *_DCMCJPEG[syntax], "+un", str(source), str(target)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        made = dcmread(target)
    return _write(made, syntax)


def _mark_lossy(ds: Dataset, syntax: uids.UID) -> None:
    if syntax in _LOSSY:
        ds.LossyImageCompression = "01"
        ds.LossyImageCompressionRatio = "10"
        ds.LossyImageCompressionMethod = _LOSSY[syntax]


def _meta(ds: Dataset, syntax: uids.UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = uids.PYDICOM_IMPLEMENTATION_UID
    return meta


def _patient_and_study(
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


def _series_and_equipment(
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
    _set_tags(ds, given)
    types = {"dx": ["DERIVED", "PRIMARY"], "ct": ["ORIGINAL", "PRIMARY", "AXIAL"]}
    ds.ImageType = types.get(kind, ["DERIVED", "SECONDARY"] if kind.startswith("sc") else ["ORIGINAL", "PRIMARY"])
    ds.ContentDate, ds.ContentTime = date, "101520"
    ds.AcquisitionDate, ds.AcquisitionTime = date, "101520"


def _pixel_module(ds: Dataset, pixels: npt.NDArray[Any], bits: int, photometric: str, *, signed: bool) -> None:
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


def _modules_of(
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


def _set_tags(ds: Dataset, tags: dict[str, Any]) -> None:
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


def _grey_scale(
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


def _padding(ds: Dataset, padding: int | tuple[int, int] | None, *, signed: bool) -> None:
    if padding is None:
        return
    value, limit = padding if isinstance(padding, tuple) else (padding, None)
    vr = "SS" if signed else "US"
    ds.add_new(Tag("PixelPaddingValue"), vr, value)
    if limit is not None:
        ds.add_new(Tag("PixelPaddingRangeLimit"), vr, limit)


def _view(view: str | tuple[str, str, str]) -> tuple[str, str, str]:
    return VIEW_CODES[view] if isinstance(view, str) else view
