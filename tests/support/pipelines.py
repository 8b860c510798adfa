"""Pipelines around bundles made for tests, and the received images that they are given."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset

from dicomnode.analysis.loading import load_pipeline
from dicomnode.analysis.pipeline import Pipeline
from dicomnode.domain.instance import StoredInstance
from dicomnode.settings.node import InferenceSettings, ResultSettings, Settings
from tests.support.bundles import make_bundle
from tests.support.decoding import CODECS
from tests.support.make import ref_of


def make_pipeline(folder: Path, *, results: ResultSettings | None = None, **bundle: Any) -> Pipeline:
    """Build the node's pipeline around a bundle that is made in this folder; `bundle`: what `make_bundle` takes."""
    inference = InferenceSettings(bundle=make_bundle(folder, **bundle), threads=1)
    _, pipeline = load_pipeline(Settings(inference=inference, results=results or ResultSettings()), CODECS)
    return pipeline


def stored_instance(ds: Dataset, part10: bytes, received_at: datetime) -> StoredInstance:
    """Return what the store says of an image whose bytes are these."""
    sha256 = hashlib.sha256(part10).hexdigest()
    return StoredInstance(
        ref=ref_of(ds),
        transfer_syntax=str(ds.file_meta.TransferSyntaxUID),
        blob=sha256,
        sha256=sha256,
        size_bytes=len(part10),
        calling_ae="PACS",
        received_at=received_at,
    )
