"""What is fuzzed: each target takes bytes, and raises only if the node would have done something it must not do."""

import hashlib
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom import uid as uids
from pynetdicom.pdu import (
    A_ABORT_RQ,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_ASSOCIATE_RQ,
    A_RELEASE_RP,
    A_RELEASE_RQ,
    P_DATA_TF,
)

from dicomnode.analysis.pipeline import Pipeline
from dicomnode.bundle.reader import open_bundle
from dicomnode.dicom.header import read_radiograph
from dicomnode.dicom.part10 import part10_bytes, read_file_head, read_ref
from dicomnode.domain.answer import Wanted
from dicomnode.domain.errors import CxrNodeError, UndecodablePixels, UnreadableObject
from dicomnode.domain.instance import InstanceRef, StoredInstance
from dicomnode.domain.job import Job
from dicomnode.imaging.eligibility import judge
from dicomnode.imaging.pixels import render
from dicomnode.inference.predictor import Predictor
from dicomnode.net.dimse.pdu import HEADER_BYTES, Pdu, is_reasonable, longest, read_header
from dicomnode.settings.node import EligibilitySettings, PixelSettings, ResultSettings
from tests.support.bundles import make_bundle
from tests.support.decoding import CODECS

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STUDY, SERIES, INSTANCE = "1.2.826.7", "1.2.826.7.1", "1.2.826.7.1.1"
LONGEST_PDU = 16_384
LONGEST_S = 2.0
"""No input of a few kilobytes may keep the node busy for longer."""

_PDUS = {
    Pdu.ASSOCIATE_RQ: A_ASSOCIATE_RQ,
    Pdu.ASSOCIATE_AC: A_ASSOCIATE_AC,
    Pdu.ASSOCIATE_RJ: A_ASSOCIATE_RJ,
    Pdu.P_DATA: P_DATA_TF,
    Pdu.RELEASE_RQ: A_RELEASE_RQ,
    Pdu.RELEASE_RP: A_RELEASE_RP,
    Pdu.ABORT: A_ABORT_RQ,
}


def study(part10: bytes) -> None:
    """Answer a study of one object as the worker does: with results, or with a coded rejection, whatever it holds."""
    sop_class = str(uids.DigitalXRayImageStorageForPresentation)
    ref = InstanceRef(study=STUDY, series=SERIES, sop_class=sop_class, sop_instance=INSTANCE)
    held = StoredInstance(
        ref=ref,
        transfer_syntax=str(uids.ExplicitVRLittleEndian),
        blob="0",
        sha256=hashlib.sha256(part10).hexdigest(),
        size_bytes=len(part10),
        calling_ae="PACS",
        received_at=NOW,
    )
    job = Job(job_id=1, study=STUDY, version=1, attempts=1, instances=(held,))
    answer = _pipeline().answer(job, lambda _: part10, NOW, (Wanted(),))
    _require(len(answer.rejections) == 1 or len(answer.results) == 2, "neither results nor a rejection")
    for result in answer.results:
        _require(
            str(dcmread(BytesIO(result.part10)).SOPInstanceUID) == result.ref.sop_instance, "a result is unreadable"
        )


def frame(part10: bytes) -> None:
    """Read an object's tags and pixels, without a model."""
    try:
        radiograph = read_radiograph(part10)
        judge(radiograph.header, EligibilitySettings(minimum_side=8))
        rendered = render(radiograph, PixelSettings(maximum_pixels=1_000_000), CODECS).pixels
    except (UnreadableObject, UndecodablePixels):
        return
    _require(bool(np.isfinite(rendered).all()), "pixels that are no numbers")
    _require(0.0 <= float(rendered.min()) <= float(rendered.max()) <= 1.0, "pixels outside of black and white")


def association(data: bytes) -> None:
    """Read the head of a data set as the Storage SCP does, before anything is stored."""
    transfer_syntax = str((uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian)[data[:1] > b"\x7f"])
    try:
        ref = read_ref(data[1:], transfer_syntax)
    except UnreadableObject:
        return
    for uid in (ref.study, ref.series, ref.sop_class, ref.sop_instance):
        _require(uids.UID(uid).is_valid, "a UID that is none")
    part10 = part10_bytes(
        data[1:], sop_class=ref.sop_class, sop_instance=ref.sop_instance, transfer_syntax=transfer_syntax
    )
    _require(part10[read_file_head(part10).offset :] == data[1:], "the data set was not stored as it came")


def file_head(data: bytes) -> None:
    """Read the head of a file, as `cxrnode send` does."""
    try:
        head = read_file_head(data)
    except UnreadableObject:
        return
    _require(head.offset <= len(data), "a head longer than its file")


def pdu(data: bytes) -> None:
    """Read a PDU as the listener does, and decode it as the library does if it is let through."""
    if len(data) < HEADER_BYTES:
        return
    kind, _ = read_header(data[:HEADER_BYTES])
    if kind not in _PDUS or len(data) - HEADER_BYTES > longest(kind, LONGEST_PDU):
        return
    if not is_reasonable(kind, data[HEADER_BYTES:]):
        return
    decoded = _PDUS[Pdu(kind)]()
    try:
        decoded.decode(data)
        decoded.to_primitive()
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 the library's reader takes any other for an invalid PDU, and aborts (Evt19)
        return


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frame": frame,
    "study": study,
    "association": association,
    "file-head": file_head,
    "pdu": pdu,
}


def run(target: Callable[[bytes], None], data: bytes) -> None:
    """Run a target, and take an answer that comes too late for none.

    Raises: AssertionError, and whatever the node must not raise.
    """
    began = time.process_time()
    try:
        target(data)
    except CxrNodeError as error:
        raise AssertionError(f"an error of the node's own tree that nobody catches here: {error}") from error
    _require(time.process_time() - began < LONGEST_S, "it took too long")


@cache
def _pipeline() -> Pipeline:
    with tempfile.TemporaryDirectory() as folder:
        opened = open_bundle(make_bundle(Path(folder)))
        predictor = Predictor(opened, threads=1)
    return Pipeline(
        codecs=CODECS,
        predictor=predictor,
        manifest=opened.manifest,
        identity=opened.identity,
        operating_point="youden",
        eligibility=EligibilitySettings(minimum_side=8),
        pixels=PixelSettings(maximum_pixels=1_000_000),
        results=ResultSettings(maximum_side=512),
    )


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)
