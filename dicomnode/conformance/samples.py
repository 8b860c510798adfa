"""The node's own answers to fixed synthetic studies, from which the statement about its objects is read.

One study is answered again and again with one thing changed each time (another source image, another configuration
...). What changes with it in the results comes from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from io import BytesIO
from typing import Any, cast

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from dicomnode.analysis.pipeline import Pipeline
from dicomnode.bundle.manifest import LabelEntry, Manifest, read_manifest
from dicomnode.bundle.phantom import draw_chest
from dicomnode.bundle.reader import MANIFEST
from dicomnode.domain.answer import ResultKind, Wanted
from dicomnode.domain.finding import ModelIdentity, SaliencyMap, Score
from dicomnode.domain.frame import Frame
from dicomnode.domain.identifiers import derive_uid, digest_of
from dicomnode.domain.instance import InstanceRef, StoredInstance
from dicomnode.domain.job import Job
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.inference.gate import UPRIGHT
from dicomnode.inference.predictor import Predictor, Reading
from dicomnode.settings.node import EligibilitySettings, PixelSettings, ResultSettings, default_bundle

_NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
_LATER = datetime(2025, 6, 7, 8, 9, 10, tzinfo=UTC)
_GRID = 7
_ANOTHER_CODE = "43468-8^Another code^LN"


class Variant(StrEnum):
    """What differs from the base; the values are what a statement calls the origin of a value.

    The sparse source and the bare configuration state as little as they may.
    """

    SOURCE = "source image"
    SETTINGS = "configuration"
    MODEL = "model"
    READING = "analysis"
    TIME = "time"
    SPARSE = "sparse source image"
    BARE = "bare configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The answer to one synthetic study: the first source image, and the results by kind."""

    source: Dataset
    results: Mapping[ResultKind, Dataset]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The base answer and its variants; `refusal` is the report on a study that was not analysed."""

    base: Sample
    variants: Mapping[Variant, Sample]
    refusal: Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    sources: tuple[Dataset, ...]
    settings: ResultSettings
    model: ModelIdentity
    manifest: Manifest
    flipped: bool = False
    now: datetime = _NOW
    predecessors: bool = True


def make_samples() -> Samples:
    """Answer the synthetic studies with the shipped bundle's manifest; the same code gives the same samples.

    Raises: BundleInvalid, when there is no shipped bundle.
    """
    manifest = read_manifest(default_bundle() / MANIFEST)
    base = _Case(
        sources=(_source("A"), _broken(_source("A", number=2))),
        settings=ResultSettings(institution="Institution A"),
        model=ModelIdentity(name="model-a", version="1.0", bundle_hash=digest_of("a")),
        manifest=manifest,
    )
    cases = {
        Variant.SOURCE: replace(base, sources=(_source("B"), _source("B", number=3), _broken(_source("B", number=2)))),
        Variant.SETTINGS: replace(base, settings=_other_settings()),
        Variant.MODEL: replace(
            base,
            model=ModelIdentity(name="model-b", version="2.0", bundle_hash=digest_of("b")),
            manifest=_recalibrated(manifest),
        ),
        Variant.READING: replace(base, flipped=True),
        Variant.TIME: replace(base, now=_LATER),
        Variant.SPARSE: replace(base, sources=(_sparse(_source("A")),), predecessors=False),
        Variant.BARE: replace(base, settings=ResultSettings(station_name="", mark="")),
    }
    lateral = _source("A")
    lateral.ViewPosition = "LL"
    refused = replace(base, sources=(lateral,), settings=ResultSettings(report_rejected=True))
    return Samples(
        base=_answer(base),
        variants={variant: _answer(case) for variant, case in cases.items()},
        refusal=_answer(refused),
    )


def _answer(case: _Case) -> Sample:
    objects = [_encoded(source) for source in case.sources]
    instances = tuple(_stored(source, part10) for source, part10 in zip(case.sources, objects, strict=True))
    study = instances[0].ref.study
    former = InstanceRef(
        study=study,
        series=derive_uid("conformance", "former series", study),
        sop_class="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance=derive_uid("conformance", "former", study),
    )
    job = Job(
        job_id=1,
        study=study,
        version=1,
        attempts=1,
        instances=instances,
        predecessors=(former,) if case.predecessors else (),
    )
    by_blob = dict(zip((instance.blob for instance in instances), objects, strict=True))
    answer = _pipeline(case).answer(
        job, lambda instance: by_blob[instance.blob], case.now, (Wanted(outputs=frozenset(ResultKind)),)
    )
    results = {result.kind: dcmread(BytesIO(result.part10)) for result in answer.results}
    return Sample(source=case.sources[0], results=results)


def _pipeline(case: _Case) -> Pipeline:
    manifest = case.manifest
    return Pipeline(
        codecs=CodecProcess(),
        predictor=cast("Predictor", FixedPredictor(manifest, flipped=case.flipped)),
        manifest=manifest,
        identity=case.model,
        operating_point=manifest.default_operating_point,
        eligibility=EligibilitySettings(),
        pixels=PixelSettings(),
        results=case.settings,
    )


class FixedPredictor:
    """Gives every frame the same reading: of three labels one is above its threshold, one below, one undetermined.

    `flipped` exchanges above and below.
    """

    def __init__(self, manifest: Manifest, *, flipped: bool = False) -> None:
        self._manifest, self._flipped = manifest, flipped

    def read(self, frame: Frame) -> Reading:  # noqa: ARG002 the signature is Predictor's
        """Return the reading."""
        labels = self._manifest.labels
        orientations = self._manifest.gate.orientations
        return Reading(
            scores=self.scores(),
            saliency=tuple(self._saliency(label, index) for index, label in enumerate(labels)),
            typicality=self._manifest.gate.typicality_threshold - 1.0,
            orientation=np.array([float(name == UPRIGHT) for name in orientations]),
        )

    def scores(self) -> tuple[Score, ...]:
        """Return the score of each label."""
        return tuple(self._score(label, index) for index, label in enumerate(self._manifest.labels))

    def _score(self, label: LabelEntry, index: int) -> Score:
        threshold = label.operating_points[self._manifest.default_operating_point].threshold
        above, below = (1 + threshold) / 2, threshold / 2
        if index % 3 == 2:
            return Score(label=label.name, probability=above, member_probabilities=(0.0, 1.0), spread=1.0)
        probability = above if (index % 3 == 0) != self._flipped else below
        return Score(label=label.name, probability=probability, member_probabilities=(probability,) * 2, spread=0.01)

    def _saliency(self, label: LabelEntry, index: int) -> SaliencyMap:
        y, x = np.mgrid[0:_GRID, 0:_GRID]
        centre = 1 + (index + self._flipped) % (_GRID - 2)
        values = (4 * np.exp(-((y - centre) ** 2 + (x - 3) ** 2) / 2) - 0.5).astype(np.float32)
        values.setflags(write=False)
        return SaliencyMap(label=label.name, values=values)


def _recalibrated(manifest: Manifest) -> Manifest:
    """Return the manifest with other operating points; its labels and codes stay."""
    labels = []
    for label in manifest.labels:
        points = {
            name: point.model_copy(
                update={
                    "threshold": (1 + point.threshold) / 2,
                    "sensitivity": point.sensitivity / 2,
                    "specificity": point.specificity / 2,
                }
            )
            for name, point in label.operating_points.items()
        }
        labels.append(label.model_copy(update={"operating_points": points}))
    return manifest.model_copy(update={"labels": tuple(labels)})


def _other_settings() -> ResultSettings:
    """Return settings of which every text and number differs from the default."""
    changed: dict[str, object] = {}
    for name, value in ResultSettings().model_dump().items():
        if isinstance(value, str) and "^" in value:
            changed[name] = _ANOTHER_CODE
        elif isinstance(value, str):
            changed[name] = f"B {value}"[:16]
        elif isinstance(value, int) and not isinstance(value, bool):
            changed[name] = value + 1
    return ResultSettings.model_validate(changed)


def _source(name: str, *, number: int = 1) -> Dataset:
    """Return a chest radiograph that states everything a result may take over; by `name` every value differs."""
    second = name == "B"
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192" if second else "ISO_IR 100"
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation if second else ComputedRadiographyImageStorage
    ds.StudyInstanceUID = derive_uid("conformance", "study", name)
    ds.SeriesInstanceUID = derive_uid("conformance", "series", name)
    ds.SOPInstanceUID = derive_uid("conformance", "instance", name, str(number))
    for keyword, values in _TAKEN_OVER.items():
        setattr(ds, keyword, values[second])
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX" if second else "CR", "CHEST", "PA"
    ds.LossyImageCompression = "01"
    _add_pixels(ds, *((1400, 1500) if second else (256, 224)))
    _add_greyscale(ds, with_tables=second)
    return ds


_TAKEN_OVER: dict[str, Sequence[Any]] = {
    "PatientName": ("Doe^Ann", "Roe^Bérénice"),
    "PatientID": ("1", "2"),
    "IssuerOfPatientID": ("A", "B"),
    "PatientBirthDate": ("19500101", "19600202"),
    "PatientSex": ("F", "M"),
    "PatientAge": ("074Y", "064Y"),
    "PatientSize": ("1.6", "1.8"),
    "PatientWeight": ("60", "80"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "DeidentificationMethod": ("method A", "method B"),
    "StudyDate": ("20240501", "20250502"),
    "StudyTime": ("101500", "111600"),
    "StudyID": ("1", "2"),
    "StudyDescription": ("Chest A", "Chest B"),
    "AccessionNumber": ("1", "2"),
    "ReferringPhysicianName": ("Physician^A", "Physician^B"),
    "TimezoneOffsetFromUTC": ("+0100", "-0500"),
    "PatientOrientation": (["L", "F"], ["R", "F"]),
    "PixelSpacing": (["0.4", "0.4"], ["0.2", "0.2"]),
    "PixelSpacingCalibrationType": ("GEOMETRY", "FIDUCIAL"),
    "PixelSpacingCalibrationDescription": ("described A", "described B"),
    "LossyImageCompressionRatio": ("10", "20"),
    "LossyImageCompressionMethod": ("ISO_10918_1", "ISO_15444_1"),
}


def _sparse(ds: Dataset) -> Dataset:
    """Return the source without what it need not state; it still is an identified frontal chest."""
    for keyword in (*_TAKEN_OVER, "LossyImageCompression", "SpecificCharacterSet"):
        if keyword not in {"PatientID", "PatientName"}:
            del ds[keyword]
    ds.PatientName = ""
    return ds


def _broken(ds: Dataset) -> Dataset:
    """Cut the pixel data short, so that the image cannot be analysed."""
    ds.PixelData = ds.PixelData[:1000]
    return ds


def _add_pixels(ds: Dataset, rows: int, columns: int) -> None:
    values = np.round(draw_chest(rows, columns, np.random.default_rng(rows)) * 4095).astype("<u2")
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = values.tobytes()
    ds["PixelData"].VR = "OW"


def _add_greyscale(ds: Dataset, *, with_tables: bool) -> None:
    """Say how the image is displayed: by numbers, or by tables and inverted."""
    if not with_tables:
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
        ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = "2048", "4096", "LINEAR"
        return
    ds.PhotometricInterpretation = "MONOCHROME1"
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [4096, 0, 12])
        item.add_new("LUTData", "OW", np.arange(4096, dtype="<u2").tobytes())
        item.LUTExplanation = "described B"
        setattr(ds, keyword, [item])


def _encoded(ds: Dataset) -> bytes:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def _stored(ds: Dataset, part10: bytes) -> StoredInstance:
    ref = InstanceRef(
        study=str(ds.StudyInstanceUID),
        series=str(ds.SeriesInstanceUID),
        sop_class=str(ds.SOPClassUID),
        sop_instance=str(ds.SOPInstanceUID),
    )
    return StoredInstance(
        ref=ref,
        transfer_syntax=str(ExplicitVRLittleEndian),
        blob=ref.sop_instance,
        sha256=digest_of(ref.sop_instance),
        size_bytes=len(part10),
        calling_ae="SENDER",
        received_at=_NOW,
    )
