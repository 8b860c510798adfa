"""A receiving archive for tests, made of pynetdicom: what the node delivers to when no PACS is installed."""

import threading
from collections import Counter
from types import TracebackType
from typing import Any, Self

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import Verification

from tests.processes import free_port


class Archive:
    """Keeps what it is sent; `sent` counts how often each SOP Instance UID came."""

    ae_title = "ARCHIVE"

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.sent: Counter[str] = Counter()
        self.datasets: dict[str, Dataset] = {}
        self._lock = threading.Lock()
        self._server: Any = None

    @property
    def peer(self) -> str:
        return f"{self.ae_title}@127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        entity = AE(self.ae_title)
        entity.maximum_pdu_size = 0
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self._server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()

    def of_study(self, study: str) -> dict[str, list[Dataset]]:
        """Return what came of a study, by modality."""
        found: dict[str, list[Dataset]] = {}
        with self._lock:
            for dataset in self.datasets.values():
                if dataset.StudyInstanceUID == study:
                    found.setdefault(str(dataset.Modality), []).append(dataset)
        return found

    def _store(self, event: Any) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        with self._lock:
            self.sent[str(dataset.SOPInstanceUID)] += 1
            self.datasets[str(dataset.SOPInstanceUID)] = dataset
        return 0x0000
