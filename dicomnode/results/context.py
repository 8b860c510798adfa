"""Where a result belongs and who made it: what is taken from the source image, and the UIDs derived for results."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Self

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from dicomnode.dicom import wild
from dicomnode.domain.answer import ResultKind, Subject
from dicomnode.domain.errors import UnreadableObject
from dicomnode.domain.finding import ModelIdentity
from dicomnode.domain.identifiers import OWN_MODEL_NAME, derive_uid, digest_of
from dicomnode.domain.instance import InstanceRef
from dicomnode.results.greyscale import Greyscale, greyscale_of
from dicomnode.settings.node import ResultSettings

_OPPOSITE = str.maketrans("APRLHF", "PALRFH")
_ORIENTATION = re.compile(r"[APRLHF]{1,3}")
_OFFSET = re.compile(r"([+-])(0[0-9]|1[0-4])([0-5][0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossyHistory:
    """That the source was once compressed with loss; ratios and methods as far as the source states them."""

    ratios: tuple[str, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSpacing:
    """Pixel Spacing as the source states it: (row, column) distance, and how it was calibrated if it says so."""

    row_mm: float
    column_mm: float
    calibration_type: str | None
    calibration_description: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceContext:
    """What a result takes over from one source image.

    `identity` holds the Patient, General Study and Patient Study attributes, cleaned so that they may stand in a
    new object; `patient_orientation` is the source's (row, column) direction, None unless both are well formed.
    """

    ref: InstanceRef
    identity: Dataset
    character_set: tuple[str, ...]
    timezone: str | None
    modality: str | None
    rows: int | None
    columns: int | None
    patient_orientation: tuple[str, str] | None
    lossy: LossyHistory | None
    spacing: PixelSpacing | None
    greyscale: Greyscale

    @property
    def subject(self) -> Subject:
        """Whom and which order the source is of, as results state them."""
        return Subject(
            patient_id=str(self.identity.get("PatientID") or ""),
            accession_number=str(self.identity.get("AccessionNumber") or ""),
        )

    @classmethod
    def of(cls, ds: Dataset) -> Self:
        """Read the context from a source data set, whatever is wrong in it.

        Raises: UnreadableObject, when one of the four UIDs is missing.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of each invalid value; here they are expected
            identity = wild.clean_identity(ds)
            return cls(
                ref=_ref(ds),
                identity=identity,
                character_set=wild.character_set(ds, identity),
                timezone=_timezone(ds),
                modality=wild.code_string(ds, "Modality"),
                rows=wild.integer(ds, "Rows"),
                columns=wild.integer(ds, "Columns"),
                patient_orientation=_orientation(ds),
                lossy=_lossy(ds),
                spacing=_spacing(ds),
                greyscale=greyscale_of(ds),
            )

    def local(self, moment: datetime) -> datetime:
        """Return the moment on the clock that the source's dates were read from.

        A source without Timezone Offset leaves it open; then the zone of `moment` itself stands.
        Source: PS3.3 C.12.1.1.8.
        """
        match = _OFFSET.fullmatch(self.timezone or "")
        if match is None:
            return moment
        offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
        return moment.astimezone(timezone(-offset if match[1] == "-" else offset))

    def orientation_after(self, quarter_turns: int) -> tuple[str, str] | None:
        """Return the Patient Orientation of the image turned counter-clockwise as by `numpy.rot90`.

        An image is only ever turned upright, so an orientation that would then not point to the feet was wrong in
        the source, and none is returned.
        """
        if self.patient_orientation is None or quarter_turns % 4 == 0:
            return self.patient_orientation
        row, column = self.patient_orientation
        for _ in range(quarter_turns % 4):
            row, column = column, row.translate(_OPPOSITE)
        return (row, column) if column.startswith("F") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """Who makes the results: the node as its operator configured it, and the model it runs.

    `series_description_prefix`: what every Series Description of this set of results begins with.
    """

    settings: ResultSettings
    model: ModelIdentity
    software_version: str
    series_description_prefix: str = ""

    @property
    def model_name(self) -> str:
        """Return the node's Manufacturer's Model Name, the same in every installation."""
        return OWN_MODEL_NAME

    @property
    def observer_uid(self) -> str:
        """Return the Device Observer UID of this installation."""
        return derive_uid(
            "device observer",
            self.settings.manufacturer,
            self.settings.station_name,
            self.settings.device_serial_number,
        )

    @property
    def short_hash(self) -> str:
        """Return the first 12 digits of the bundle's hash, enough for a person to compare."""
        return self.model.bundle_hash[:12]

    def settings_digest(self, *more: str) -> str:
        """Return the digest of the settings that shape results, and of whatever else (`more`) shapes them."""
        prefix = (self.series_description_prefix,) if self.series_description_prefix else ()
        return digest_of(self.settings.model_dump_json(), *more, *prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultIdentity:
    """What a result's UIDs derive from: the same study, inputs, model and settings give the same UIDs."""

    study: str
    inputs_digest: str
    bundle_hash: str
    settings_digest: str

    def series(self, kind: ResultKind, *of: str) -> str:
        """Return the Series Instance UID for results of this kind, and `of` one finding where each has its own."""
        return self._uid("series", kind.value, *of)

    def instance(self, kind: ResultKind, *of: str) -> str:
        """Return the SOP Instance UID of the result of this kind made `of` these sources (none: the whole study)."""
        return self._uid("instance", kind.value, *of)

    def tracking(self, source: str, label: str) -> str:
        """Return the Tracking UID of one label in one source image."""
        return self._uid("tracking", source, label)

    def _uid(self, *role: str) -> str:
        return derive_uid(self.study, self.inputs_digest, self.bundle_hash, self.settings_digest, *role)


def _ref(ds: Dataset) -> InstanceRef:
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
    study, series, sop_class, sop_instance = (wild.text(ds, keyword) for keyword in keywords)
    if not (study and series and sop_class and sop_instance):
        raise UnreadableObject("the object lacks a study, series, SOP class or SOP instance UID")
    return InstanceRef(study=study, series=series, sop_class=sop_class, sop_instance=sop_instance)


def _timezone(ds: Dataset) -> str | None:
    value = wild.text(ds, "TimezoneOffsetFromUTC")
    return value if _OFFSET.fullmatch(value) else None


def _orientation(ds: Dataset) -> tuple[str, str] | None:
    values = [value.upper() for value in wild.texts(ds, "PatientOrientation")]
    if len(values) != 2 or not all(_ORIENTATION.fullmatch(value) for value in values):
        return None
    return values[0], values[1]


def _lossy(ds: Dataset) -> LossyHistory | None:
    """Return the lossy history from the flag, or from a lossy transfer syntax whose object forgot the flag.

    Source: PS3.3 C.7.6.1.1.5.
    """
    syntax = getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", ImplicitVRLittleEndian)
    method = wild.LOSSY_METHODS.get(str(syntax))
    flag = wild.text(ds, "LossyImageCompression")
    if flag == "00" or (flag != "01" and method is None):
        return None
    ratios = tuple(_ratios(ds))
    methods = tuple(wild.texts(ds, "LossyImageCompressionMethod")) or ((method,) if method else ())
    # The two are parallel lists; where the source's lengths disagree, neither can be trusted to name a step.
    return LossyHistory(ratios=ratios, methods=methods if len(methods) == len(ratios) or not ratios else ())


def _ratios(ds: Dataset) -> Iterator[str]:
    stated = [value for value in wild.numbers(ds, "LossyImageCompressionRatio") if value > 0]
    if not stated:
        measured = wild.compression_ratio(ds)
        stated = [measured] if measured else []
    for value in stated:
        yield f"{value:.4g}"


def _spacing(ds: Dataset) -> PixelSpacing | None:
    values = wild.numbers(ds, "PixelSpacing")
    if len(values) != 2 or not all(0.01 <= value <= 5.0 for value in values):
        return None
    calibration = wild.code_string(ds, "PixelSpacingCalibrationType")
    return PixelSpacing(
        row_mm=values[0],
        column_mm=values[1],
        calibration_type=calibration if calibration in {"GEOMETRY", "FIDUCIAL"} else None,
        calibration_description=wild.text(ds, "PixelSpacingCalibrationDescription")[:64] or None,
    )
