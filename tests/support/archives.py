"""A receiving archive for tests, made of pynetdicom: what the node delivers to when no PACS is installed."""

import socket
import threading
from collections import Counter
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import AllStoragePresentationContexts, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from tests.support.processes import free_port


class Archive:
    """Keeps what it is sent; `sent` counts how often each SOP Instance UID came."""

    ae_title = "ARCHIVE"

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.sent: Counter[str] = Counter()
        self.datasets: dict[str, Dataset] = {}
        self._lock = threading.Lock()
        self._server: Any = None
        self._wires: list[socket.socket] = []

    @property
    def peer(self) -> str:
        return f"{self.ae_title}@127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        entity = AE(self.ae_title)
        entity.maximum_pdu_size = 0
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self._offer(entity)
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=self._handlers())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        # pynetdicom leaves the socket open when the other side was first to close.
        for wire in self._wires:
            wire.close()

    def _offer(self, entity: AE) -> None:
        """Offer more than Verification and Storage."""

    def _handlers(self) -> list[Any]:
        return [(evt.EVT_C_STORE, self._store), (evt.EVT_CONN_OPEN, self._note_wire)]

    def _note_wire(self, event: Any) -> None:
        self._wires.append(event.assoc.dul.socket.socket)

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


class CommittingArchive(Archive):
    """Answers for what it keeps, over associations of its own, and insists until it is told that it was heard.

    `asked` are the Transaction UIDs, `heard` those whose reports were taken; `respond` and `report` are set, or
    cleared to have a response or a report wait; `knocks`: how many associations it had for a report.
    """

    PAUSE_S = 0.2

    def __init__(self, node_port: int) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.heard: list[str] = []
        self.respond, self.report = threading.Event(), threading.Event()
        self.knocks = 0
        self.respond.set()
        self.report.set()
        self._node_port = node_port
        self._reports: SimpleQueue[Dataset | None] = SimpleQueue()
        self._leaving = threading.Event()
        self._reporter = threading.Thread(target=self._report_all, name="reporter")

    def __enter__(self) -> Self:
        super().__enter__()
        self._reporter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for event in (self._leaving, self.respond, self.report):
            event.set()
        self._reports.put(None)
        self._reporter.join()
        super().__exit__(kind, error, at)

    def _offer(self, entity: AE) -> None:
        entity.add_supported_context(StorageCommitmentPushModel)

    def _handlers(self) -> list[Any]:
        return [*super()._handlers(), (evt.EVT_N_ACTION, self._on_action)]

    def _on_action(self, event: Any) -> tuple[int, None]:
        wanted = event.action_information
        told = Dataset()
        told.TransactionUID = wanted.TransactionUID
        # One that it does not have is in neither sequence, so it is never committed.
        told.ReferencedSOPSequence = [
            item for item in wanted.ReferencedSOPSequence if item.ReferencedSOPInstanceUID in self.datasets
        ]
        self.asked.append(str(wanted.TransactionUID))
        self.respond.wait()
        self._reports.put(told)
        return 0x0000, None

    def _report_all(self) -> None:
        while (told := self._reports.get()) is not None:
            while not self._leaving.is_set() and not self._tell(told):
                self._leaving.wait(self.PAUSE_S)

    def _tell(self, told: Dataset) -> bool:
        """Report over an association of its own; tell whether the node has answered."""
        if not self._listens():
            return False
        association = AE(self.ae_title).associate(
            "127.0.0.1",
            self._node_port,
            contexts=[build_context(StorageCommitmentPushModel)],
            ae_title="CXRNODE",
            ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
        )
        wire = association.dul.socket.socket
        try:
            return bool(association.is_established) and self._tell_over(association, told)
        except RuntimeError:
            return False  # the association has ended
        finally:
            # pynetdicom leaves the socket open when the other side was first to close.
            if wire is not None:
                wire.close()

    def _tell_over(self, association: Any, told: Dataset) -> bool:
        self.knocks += 1
        self.report.wait()
        status, _ = association.send_n_event_report(
            told, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        association.release()
        if status.get("Status") == 0x0000:
            self.heard.append(str(told.TransactionUID))
        return "Status" in status

    def _listens(self) -> bool:
        """Tell whether the node is up: pynetdicom would leave a socket behind for each time that it is not."""
        try:
            socket.create_connection(("127.0.0.1", self._node_port)).close()
        except OSError:
            return False
        return True
