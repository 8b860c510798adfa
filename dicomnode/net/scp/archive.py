"""A receiving archive for trying the node out: a Storage SCP on this machine that writes what it is sent into a folder.

It is no PACS: it keeps no index, asks nobody who they are, and listens on the loopback address alone.
"""

import hashlib
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import Verification

from dicomnode.dicom.part10 import part10_bytes, read_ref
from dicomnode.domain.errors import ConfigurationError, UnreadableObject
from dicomnode.domain.instance import InstanceRef
from dicomnode.net.dimse.transport import own_library_logs
from dicomnode.net.status import StoreStatus

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_NAME_CHARACTERS = 12
_REPORTS = frozenset({Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage})


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """An object that the archive has, and the file that holds it."""

    ref: InstanceRef
    file: Path

    @property
    def kind(self) -> str:
        """Return what it is: SR, SC, or an object of another class."""
        return _kind(self.ref.sop_class)


class Archive:
    """Keeps what it is sent below `folder`, a folder for each study; `port` is known once it has started."""

    ae_title = "ARCHIVE"

    def __init__(self, folder: Path) -> None:
        """Take the folder, which is created when the archive starts."""
        self._folder = folder
        self._lock = threading.Lock()
        self._kept: dict[str, Archived] = {}
        self._server: Any = None

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        return int(self._server.socket.getsockname()[1])

    @property
    def peer(self) -> str:
        """Return how it is called: AET@HOST:PORT."""
        return f"{self.ae_title}@{_LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Listen in the background, on a free port. Raises: ConfigurationError."""
        own_library_logs()
        entity = AE(self.ae_title)
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handlers = [(evt.EVT_C_STORE, self._store)]
            self._server = entity.start_server((_LOOPBACK, 0), block=False, evt_handlers=handlers)
        except OSError as error:
            raise ConfigurationError(f"the archive cannot be started in {self._folder}: {error.strerror}") from error

    def stop(self) -> None:
        """Stop listening; what it has stays where it is."""
        if self._server is not None:
            self._server.shutdown()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def of_study(self, study: str) -> tuple[Archived, ...]:
        """Return what came of a study, in the order in which it came."""
        with self._lock:
            return tuple(entry for entry in self._kept.values() if entry.ref.study == study)

    def _store(self, event: Any) -> int:
        data_set, syntax = event.request.DataSet.getvalue(), str(event.context.transfer_syntax)
        try:
            ref = read_ref(data_set, syntax)
            file = self._folder / folder_name(ref.study) / f"{_kind(ref.sop_class)}-{_name(ref.sop_instance)}.dcm"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(
                part10_bytes(data_set, sop_class=ref.sop_class, sop_instance=ref.sop_instance, transfer_syntax=syntax)
            )
        except UnreadableObject:
            return StoreStatus.CANNOT_UNDERSTAND
        except OSError as error:
            log.warning("archive-refused", extra={"cause": error.strerror})
            return StoreStatus.OUT_OF_RESOURCES
        with self._lock:
            self._kept[ref.sop_instance] = Archived(ref=ref, file=file)
        return StoreStatus.SUCCESS


def folder_name(study: str) -> str:
    """Return the name of a study's folder. A UID is somebody else's string: only its digest becomes a name."""
    return _name(study)


def _kind(sop_class: str) -> str:
    if sop_class in _REPORTS:
        return "SR"
    return "SC" if sop_class == SecondaryCaptureImageStorage else "object"


def _name(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:_NAME_CHARACTERS]
