"""Source images of every kind the node accepts, and the objects that it makes of them: all kinds, by its own pipeline.

Only the model is left out, so that every source gets the same findings: present, absent and undetermined ones.
"""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset, dcmread
from pydicom import uid as uids

from dicomnode.analysis.pipeline import Pipeline
from dicomnode.bundle.manifest import Manifest, read_manifest
from dicomnode.bundle.reader import MANIFEST
from dicomnode.conformance.samples import FixedPredictor
from dicomnode.domain.answer import ResultKind, StudyAnswer, Wanted
from dicomnode.domain.finding import ModelIdentity
from dicomnode.domain.identifiers import derive_uid
from dicomnode.domain.instance import InstanceRef, StoredInstance
from dicomnode.domain.job import Job
from dicomnode.inference.predictor import Predictor
from dicomnode.net.contexts import ACCEPTED_TRANSFER_SYNTAXES
from dicomnode.settings.node import EligibilitySettings, PixelSettings, ResultSettings, default_bundle
from tests.support.decoding import CODECS
from tests.support.make import build, encode, htj2k, lut, ref_of

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
REAL = (
    "chest-pa-monochrome1-j2k.dcm",
    "chest-pa-secondary-capture-jpeg.dcm",
    "chest-pa-view-in-patient-position.dcm",
)
_OPTIONAL = (
    "PatientAge", "PatientOrientation", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "PatientBirthDate",
    "PatientSex", "ReferringPhysicianName", "Modality", "BodyPartExamined", "SpecificCharacterSet", "ViewPosition",
)  # fmt: skip
_HTJ2K = frozenset({uids.HTJ2KLossless, uids.HTJ2KLosslessRPCL, uids.HTJ2K})
_SMALL: dict[str, Any] = {"rows": 320, "columns": 280}

Source = Callable[[], list[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One object the node made: of which source, of which kind, where it lies. `shape` is that of its content tree."""

    source: str
    kind: str
    file: Path
    shape: str

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def is_report(self) -> bool:
        return bool(self.shape)


def _of(kind: str, name: str, **arguments: Any) -> Source:
    return lambda: [encode(build(kind, study_uid=derive_uid("peers", name), **{**_SMALL, **arguments}))]


def _stripped() -> list[bytes]:
    ds = build("cr", patient_name="NONE", spacing_mm=None, study_uid=derive_uid("peers", "stripped"), **_SMALL)
    for keyword in _OPTIONAL:
        ds.pop(keyword, None)
    return [encode(ds)]


def _in(transfer_syntax: str) -> Source:
    def make() -> list[bytes]:
        if transfer_syntax in _HTJ2K:
            part10 = htj2k(lossless=transfer_syntax != uids.HTJ2K)[2]
            ds = dcmread(BytesIO(part10))
            ds.StudyInstanceUID = derive_uid("peers", transfer_syntax)
            ds.file_meta.TransferSyntaxUID = transfer_syntax
            buffer = BytesIO()
            ds.save_as(buffer)
            return [buffer.getvalue()]
        bits = 8 if transfer_syntax == uids.JPEGBaseline8Bit else 12
        return [
            encode(build("cr", bits=bits, study_uid=derive_uid("peers", transfer_syntax), **_SMALL), transfer_syntax)
        ]

    return make


def _with_a_broken_image() -> list[bytes]:
    study = derive_uid("peers", "broken")
    whole, broken = (build("cr", study_uid=study, seed=seed, **_SMALL) for seed in (1, 2))
    broken.PixelData = broken.PixelData[:500]
    return [encode(whole), encode(broken)]


_GREYSCALES = (
    ("cr", "MONOCHROME1", 8), ("cr", "MONOCHROME2", 10), ("cr", "MONOCHROME1", 16), ("dx", "MONOCHROME2", 12),
    ("dx", "MONOCHROME1", 14), ("dx-for-processing", "MONOCHROME1", 12), ("sc", "MONOCHROME2", 8),
    ("sc", "MONOCHROME1", 16),
)  # fmt: skip

SYNTHETIC: dict[str, Source] = {
    **{
        f"{kind}-{sense.lower()}-{bits}-bit": _of(kind, f"{kind} {sense} {bits}", photometric=sense, bits=bits)
        for kind, sense, bits in _GREYSCALES
    },
    **{uids.UID(uid).name.lower().replace(" ", "-"): _in(uid) for uid in ACCEPTED_TRANSFER_SYNTAXES},
    "without-optional-attributes": _stripped,
    "calibrated": _of("sc", "calibrated", tags={"PixelSpacingCalibrationType": "GEOMETRY"}),
    "lossy": _of("cr", "lossy", tags={"LossyImageCompression": "01", "LossyImageCompressionRatio": ["10", "4"]}),
    "with-tables": _of(
        "dx", "tables", modality_lut=lut(range(0, 65536, 16)), voi_lut=lut(range(4096), first=-5, bits=12)
    ),
    "deidentified": _of("cr", "deidentified", tags={"PatientIdentityRemoved": "YES", "TimezoneOffsetFromUTC": "+0545"}),
    "with-a-broken-image": _with_a_broken_image,
    "lateral": _of("cr", "lateral", view="LL"),
    "utf-8": _of("cr", "utf-8", character_set="ISO_IR 192", patient_name="Wang^XiaoDong=王^小東"),
    "gb18030": _of("cr", "gb18030", character_set="GB18030", patient_name="Wang^XiaoDong=王^小东"),
    "japanese": _of("cr", "japanese", character_set=["", "ISO 2022 IR 87"], patient_name="Yamada^Tarou=山田^太郎"),
    "korean": _of("cr", "korean", character_set=["", "ISO 2022 IR 149"], patient_name="Hong^Gildong=洪^吉洞=홍^길동"),
    "cyrillic": _of("cr", "cyrillic", character_set="ISO_IR 144", patient_name="Иванов^Иван"),
}
REFUSED = frozenset({"lateral"})
"""Sources that get a "not analysed" report; every other gets findings."""


def shipped_manifest() -> Manifest:
    """Return the manifest of the bundle that is served by default."""
    return read_manifest(default_bundle() / MANIFEST)


def answer(
    images: list[bytes],
    *,
    manifest: Manifest | None = None,
    outputs: frozenset[ResultKind] = frozenset(ResultKind),
    institution: str = "Hôpital général",
) -> StudyAnswer:
    """Answer a study with every kind of object the node can make, or with those of `outputs`."""
    manifest = manifest or shipped_manifest()
    pipeline = Pipeline(
        codecs=CODECS,
        predictor=cast("Predictor", FixedPredictor(manifest)),
        manifest=manifest,
        identity=ModelIdentity(name=manifest.name, version=manifest.version, bundle_hash="0123456789abcdef" * 4),
        operating_point=manifest.default_operating_point,
        eligibility=EligibilitySettings(minimum_side=100),
        pixels=PixelSettings(),
        results=ResultSettings(institution=institution, report_rejected=True),
    )
    instances = tuple(_stored(part10) for part10 in images)
    former = InstanceRef(
        study=instances[0].ref.study, series="1.2.3", sop_class=uids.Comprehensive3DSRStorage, sop_instance="1.2.3.4"
    )
    job = Job(job_id=1, study=former.study, version=2, attempts=1, instances=instances, predecessors=(former,))
    objects = {instance.sha256: part10 for instance, part10 in zip(instances, images, strict=True)}
    return pipeline.answer(job, lambda instance: objects[instance.sha256], NOW, (Wanted(outputs=outputs),))


def shape_of(ds: Dataset) -> str:
    """Return what the content tree of a report is built of, without its values; "" for what is no report."""
    if "ContentSequence" not in ds:
        return ""
    names = (str(ds.SOPClassUID), *sorted(set(_items(ds, ""))))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _items(item: Dataset, above: str) -> list[str]:
    name = item.ConceptNameCodeSequence[0].CodeValue if item.get("ConceptNameCodeSequence") else ""
    here = f"{above}/{item.get('RelationshipType', '')} {item.ValueType} {name}"
    return [here, *(entry for child in item.get("ContentSequence", []) for entry in _items(child, here))]


def _stored(part10: bytes) -> StoredInstance:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # objects in the wild are not conformant
        ds = dcmread(BytesIO(part10), stop_before_pixels=True)
        ref = ref_of(ds)
    sha256 = hashlib.sha256(part10).hexdigest()
    return StoredInstance(
        ref=ref,
        transfer_syntax=str(ds.file_meta.TransferSyntaxUID),
        blob=sha256,
        sha256=sha256,
        size_bytes=len(part10),
        calling_ae="SENDER",
        received_at=NOW,
    )
