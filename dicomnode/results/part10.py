"""The modules every result shares, and its encoding as a DICOM file."""

import io
import warnings
from datetime import datetime

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomnode.dicom.character_set import UTF_8, Terms, survive
from dicomnode.dicom.writing import non_ascii
from dicomnode.domain.answer import ResultInstance, ResultKind
from dicomnode.domain.coding import PRIVATE_PREFIX
from dicomnode.domain.identifiers import IMPLEMENTATION_CLASS_UID, derive_uid
from dicomnode.domain.instance import InstanceRef
from dicomnode.domain.terminology import PRIVATE_SCHEME
from dicomnode.results import codes
from dicomnode.results.context import Equipment, SourceContext

_ISSUER = Tag("IssuerOfPatientIDQualifiersSequence")
DATE, TIME = "%Y%m%d", "%H%M%S.%f"


def new_dataset(context: SourceContext, kind_class: UID, sop_instance: str, now: datetime) -> Dataset:
    """Return a data set with the Patient, Study and SOP Common modules.

    Source: PS3.3 C.7.1.1, C.7.2.1, C.7.2.2, C.12.1.
    """
    ds = Dataset()
    ds.update(context.identity)
    ds.SOPClassUID = kind_class
    ds.SOPInstanceUID = sop_instance
    created = context.local(now)
    ds.InstanceCreationDate = created.strftime(DATE)
    ds.InstanceCreationTime = created.strftime(TIME)
    if context.timezone:
        ds.TimezoneOffsetFromUTC = context.timezone
    return ds


def add_equipment(ds: Dataset, equipment: Equipment) -> None:
    """Add the General and Enhanced General Equipment modules, and the model as contributing equipment.

    Source: PS3.3 C.7.5.1, C.7.5.2; IHE AIR 6.5.3.1 (one item per algorithm).
    """
    settings = equipment.settings
    ds.Manufacturer = settings.manufacturer
    ds.ManufacturerModelName = equipment.model_name
    ds.DeviceSerialNumber = settings.device_serial_number
    ds.SoftwareVersions = equipment.software_version
    ds.InstanceCreatorUID = equipment.observer_uid
    if settings.station_name:
        ds.StationName = settings.station_name
    if settings.institution:
        ds.InstitutionName = settings.institution
    algorithm = Dataset()
    algorithm.Manufacturer = settings.manufacturer
    algorithm.ManufacturerModelName = equipment.model.name
    algorithm.SoftwareVersions = [equipment.model.version, f"sha256:{equipment.short_hash}"]
    algorithm.PurposeOfReferenceCodeSequence = [codes.configured(settings.equipment_purpose)]
    ds.ContributingEquipmentSequence = [algorithm]


def series_description(what: str, equipment: Equipment) -> str:
    """Return a Series Description that carries the set's prefix and the configured mark (LO: at most 64 characters)."""
    mark = equipment.settings.mark
    described = f"{equipment.series_description_prefix}{what}"
    return (f"{described} - {mark}" if mark else described)[:64].strip()


def add_lossy_history(ds: Dataset, source: SourceContext) -> None:
    """Carry on what the source lost: a derived image keeps the flag. Source: PS3.3 C.7.6.1.1.5."""
    if source.lossy is None:
        ds.LossyImageCompression = "00"
        return
    ds.LossyImageCompression = "01"
    if source.lossy.ratios:
        ds.LossyImageCompressionRatio = list(source.lossy.ratios)
    if source.lossy.methods:
        ds.LossyImageCompressionMethod = list(source.lossy.methods)


def identify_private_schemes(ds: Dataset, equipment: Equipment) -> None:
    """Say whose each private coding scheme is that the object uses. Source: PS3.3 C.12.1.1.6.

    Not of the schemes that the source's issuers are coded in: nobody knows here whose those are.
    """
    own = Dataset()
    own.update({tag: element for tag, element in ds.items() if tag != _ISSUER})
    used = {str(element.value) for element in own.iterall() if element.keyword == "CodingSchemeDesignator"}
    private = sorted(designator for designator in used if designator.startswith(PRIVATE_PREFIX))
    if private:
        ds.CodingSchemeIdentificationSequence = [_scheme_item(designator, equipment) for designator in private]


def _scheme_item(designator: str, equipment: Equipment) -> Dataset:
    """Return the identification of the node's own scheme, or of one that the bundle brought."""
    item = Dataset()
    item.CodingSchemeDesignator = designator
    if designator == PRIVATE_SCHEME:
        item.CodingSchemeUID = derive_uid("coding scheme", PRIVATE_SCHEME)
        item.CodingSchemeName = "Reasons for not analysing an image"
        item.CodingSchemeResponsibleOrganization = equipment.settings.manufacturer
    else:
        item.CodingSchemeName = f"Findings of the model {equipment.model.name}"
    return item


def finish(ds: Dataset, kind: ResultKind, character_set: Terms, derived_from: tuple[str, ...]) -> ResultInstance:
    """Encode the finished data set.

    The source's character set is kept where every text survives it; UTF-8 takes its place otherwise.
    """
    strings = non_ascii(ds)
    terms = character_set if not strings or survive(strings, character_set) else (UTF_8,)
    if terms:
        ds.SpecificCharacterSet = list(terms) if len(terms) > 1 else terms[0]
    ref = InstanceRef(
        study=str(ds.StudyInstanceUID),
        series=str(ds.SeriesInstanceUID),
        sop_class=str(ds.SOPClassUID),
        sop_instance=str(ds.SOPInstanceUID),
    )
    return ResultInstance(
        ref=ref,
        kind=kind,
        transfer_syntax=str(ExplicitVRLittleEndian),
        part10=encode(ds),
        derived_from=derived_from,
    )


def encode(ds: Dataset) -> bytes:
    """Return the Part 10 bytes of a data set in Explicit VR Little Endian; the preamble is zeros."""
    ds.preamble = b"\x00" * 128
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    ds.file_meta.ImplementationVersionName = "CXRNODE"
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # over-long identifiers are kept on purpose, see `dicom.identity`
        ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def decode(part10: bytes) -> Dataset:
    """Read back the node's own Part 10 bytes."""
    return pydicom.dcmread(io.BytesIO(part10), force=False)
