"""Drawn chests: images that belong to nobody, as a modality would send them.

They are ellipses, curves and noise, not anatomy. Proportions and grey values were chosen so that the shipped model's
pixel gate takes them for frontal chests; what the model finds in them means nothing.
"""

from datetime import datetime
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.identifiers import IMPLEMENTATION_CLASS_UID, derive_uid

_BITS = 12
_VIEWS = ("PA", "PA", "AP", "LL")
_SIDE = 1024
Plane = npt.NDArray[np.float64]


def write_studies(folder: Path, now: datetime) -> list[Path]:
    """Write one file per study: three frontal chests, and one that its tags call a lateral.

    Raises: ConfigurationError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(folder, number, view, now) for number, view in enumerate(_VIEWS, start=1)]
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written to: {error.strerror}; choose another --out") from error


def draw_chest(side: int, random: np.random.Generator) -> FloatArray:
    """Return a drawn frontal chest: (side, side) float32 in [0, 1]; 1 is bright (dense)."""
    y, x = np.mgrid[0:side, 0:side]
    y, x = (y + 0.5) / side * 2 - 1, (x + 0.5) / side * 2 - 1
    shift = random.uniform(-0.02, 0.02, 5)
    body = _body(x, y)
    right = _blob(x + 0.321 - shift[0], y + 0.049, 0.31, 0.655, 0.155)
    left = _blob(x - 0.321 - shift[1], y + 0.049, 0.31, 0.655, 0.155)
    lungs = np.maximum(right, left)
    image = 0.075 + 0.504 * body - 0.36 * lungs
    image += 0.128 * np.exp(-((x / 0.152) ** 2)) * body
    image += 0.239 * _blob(x - 0.143 - shift[2], y - 0.249 - shift[3], 0.34, 0.314, 0.15)
    image += _bones(x, y, lungs, body, shift[4]) + _abdomen(x, y) * body
    image += 0.7 * _texture(side, random) * (0.3 + body)
    smooth = cv2.GaussianBlur(image, (0, 0), side / 270)
    return np.asarray(np.clip(smooth, 0.0, 1.0), dtype=np.float32)


def _blob(x: Plane, y: Plane, across: float, down: float, soft: float) -> Plane:
    """Return an ellipse around the origin: 1 inside, 0 outside, with an edge as wide as `soft`."""
    radius = np.sqrt((x / across) ** 2 + (y / down) ** 2)
    return np.asarray(1 / (1 + np.exp((radius - 1) / soft)))


def _body(x: Plane, y: Plane) -> Plane:
    trunk = 1 / (1 + np.exp((np.abs(x) - 0.856) / 0.033))
    shoulders = 1 / (1 + np.exp((0.346 * np.abs(x) - 0.95 - y) / 0.05))
    return np.asarray(np.maximum(trunk * shoulders, _blob(x, y + 1.1, 0.226, 0.6, 0.12)))


def _bones(x: Plane, y: Plane, lungs: Plane, body: Plane, shift: float) -> Plane:
    """Return ribs and clavicles, with what stands out at the hila."""
    ribs = 0.044 * np.clip(np.sin(2 * np.pi * (3.946 * y - 1.234 * x**2 + shift)), 0, 1) * (lungs + 0.3)
    reach = (np.abs(x) > 0.08) & (np.abs(x) < 0.8)
    clavicles = 0.107 * np.exp(-(((y + 0.613 + 0.163 * np.abs(x)) / 0.05) ** 2)) * reach
    hila = 0.08 * (_blob(x + 0.17, y, 0.1, 0.18, 0.4) + _blob(x - 0.18, y + 0.02, 0.1, 0.18, 0.4))
    return np.asarray((ribs + clavicles) * body + hila)


def _abdomen(x: Plane, y: Plane) -> Plane:
    domes = 0.467 + 0.201 * (np.abs(np.abs(x) - 0.42) / 0.42) ** 2
    return np.asarray(0.245 / (1 + np.exp(-(y - domes) / 0.05)))


def _texture(side: int, random: np.random.Generator) -> Plane:
    """Return noise of three grains."""
    grains = ((10, 0.021), (26, 0.025), (64, 0.011))
    return np.asarray(
        sum(
            weight * cv2.resize(random.normal(0, 1, (cells, cells)), (side, side), interpolation=cv2.INTER_CUBIC)
            for cells, weight in grains
        )
    )


def _write(folder: Path, number: int, view: str, now: datetime) -> Path:
    ds = _described(number, view, now)
    _add_pixels(ds, draw_chest(_SIDE, np.random.default_rng(number)))
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
    ds.StudyDescription = "Drawn chest, of nobody"
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
