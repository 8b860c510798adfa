"""The demo's studies: drawn chests as DICOM files, as a modality would send them."""

from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from dicomnode.bundle.phantom import draw_chest
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.identifiers import IMPLEMENTATION_CLASS_UID, derive_uid

_BITS = 12
_VIEWS = ("PA", "PA", "AP", "LL")
_SIDE = 1024


def write_studies(folder: Path, now: datetime) -> list[Path]:
    """Write one file per study: three frontal chests, and one that its tags call a lateral.

    Raises: ConfigurationError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(folder, number, view, now) for number, view in enumerate(_VIEWS, start=1)]
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written to: {error.strerror}; choose another --out") from error


def _write(folder: Path, number: int, view: str, now: datetime) -> Path:
    ds = _described(number, view, now)
    _add_pixels(ds, draw_chest(_SIDE, _SIDE, np.random.default_rng(number)))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    file = folder / f"chest-{number}.dcm"
    file.write_bytes(buffer.getvalue())
    return file


def _described(number: int, view: str, now: datetime) -> Dataset:
    """Return everything of a CR image but its pixels. Source: PS3.3 A.2."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = (
        f"Drawn^Chest {number}",
        f"DRAWN-{number}",
        "",
        "O",
    )
    names = (str(number), now.isoformat())
    ds.StudyInstanceUID = derive_uid("demo", "study", *names)
    ds.SeriesInstanceUID = derive_uid("demo", "series", *names)
    ds.SOPInstanceUID = derive_uid("demo", "instance", *names)
    ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = f"{now:%Y%m%d}"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = f"{now:%H%M%S}"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = str(number), f"DRAWN{number}", ""
    ds.StudyDescription = "Synthetic chest, no patient"
    ds.SeriesNumber, ds.InstanceNumber, ds.Modality = 1, 1, "CR"
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CHEST", view, ["L", "F"]
    ds.ImageType, ds.Manufacturer, ds.BurnedInAnnotation = ["ORIGINAL", "PRIMARY"], "cxrnode demo", "NO"
    return ds


def _add_pixels(ds: Dataset, pixels: FloatArray) -> None:
    values = np.round(pixels * ((1 << _BITS) - 1)).astype("<u2")
    ds.Rows, ds.Columns = values.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, _BITS, _BITS - 1, 0
    ds.WindowCenter, ds.WindowWidth = str(1 << (_BITS - 1)), str(1 << _BITS)
    ds.PixelData = values.tobytes()
    ds["PixelData"].VR = "OW"
