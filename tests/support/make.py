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
from pydicom.tag import Tag

from dicomnode.bundle.phantom import draw_chest
from dicomnode.domain.identifiers import derive_uid
from dicomnode.domain.instance import InstanceRef
from tests.support.modules import (
    add_padding,
    grey_scale,
    modules_of,
    patient_and_study,
    pixel_module,
    series_and_equipment,
    set_tags,
)
from tests.support.processes import missing_peer

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
_DATA = Path(__file__).parent.parent / "data"
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
    """Return a drawn frontal chest, the same for the same arguments; see `dicomnode.bundle.phantom.draw_chest`."""
    pixels = draw_chest(rows, columns, np.random.default_rng(seed), collimator=collimator)
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
    patient_and_study(ds, patient_name, patient_id, birth_date, age, accession, study, study_date)
    series_and_equipment(ds, kind, series, modality, body_part, view, patient_position, study_date)
    ds.SOPClassUID, ds.SOPInstanceUID = SOP_CLASSES[kind], instance
    pixel_module(ds, pixels, bits, photometric, signed=signed)
    modules_of(kind, ds, view, view_code, photometric)
    grey_scale(ds, kind, bits, window, window_function, rescale, modality_lut, voi_lut, signed=signed)
    add_padding(ds, padding, signed=signed)
    if spacing_mm is not None:
        keyword = "ImagerPixelSpacing" if kind in ("cr", "dx", "dx-for-processing") else "PixelSpacing"
        setattr(ds, keyword, [str(value) for value in spacing_mm])
    set_tags(ds, tags or {})
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

    No library among the dependencies encodes HTJ2K; the frames in tests/data were made by OpenJPH of the drawn chest
    beside them, and stay as they are.
    """
    values = np.asarray(cv2.imread(str(_DATA / "chest-htj2k.png"), cv2.IMREAD_UNCHANGED), dtype=np.uint16)
    ds = build("cr", pixels=values, bits=16)
    frame = (_DATA / f"chest-htj2k-{'lossless' if lossless else 'lossy'}.j2c").read_bytes()
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
