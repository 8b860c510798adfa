"""Modalities that send studies, as long as it takes until each image is acknowledged."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from queue import Empty, Queue

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context

from dicomnode.domain.identifiers import derive_uid
from tests.support.make import SOP_CLASSES, build, encode

ROWS, COLUMNS = 256, 224
PAUSE_S = 0.2
KINDS = ("answered", "answered", "answered", "two images", "came twice", "a lateral", "damaged pixels")


@dataclass
class Sent:
    """What the node has acknowledged with 0x0000, and what the peers did."""

    acknowledged: dict[str, str] = field(default_factory=dict)  # SOP Instance UID → study
    studies: dict[str, str] = field(default_factory=dict)  # study → kind, once all of it is acknowledged
    counted: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Senders:
    """Several modalities that share a list of studies."""

    def __init__(self, port: int, studies: int, *, seed: int, peers: int = 3) -> None:
        self.sent = Sent()
        self._port, self._seed = port, seed
        self._todo: Queue[int] = Queue()
        for number in range(studies):
            self._todo.put(number)
        self._chest = encode(build("dx", rows=ROWS, columns=COLUMNS))
        self._lateral = encode(build("dx", rows=ROWS, columns=COLUMNS, view="LL"))
        self._threads = [threading.Thread(target=self._send_all, name=f"modality-{index}") for index in range(peers)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _send_all(self) -> None:
        while True:
            try:
                number = self._todo.get_nowait()
            except Empty:
                return
            kind = KINDS[number % len(KINDS)]
            images = list(self._images(number, kind))
            while not self._send(images):
                self.sent.counted["sent again, for want of an answer"] += 1
                time.sleep(PAUSE_S)
            if kind == "came twice":
                self._send(images)
            with self.sent.lock:
                self.sent.studies[str(images[0].StudyInstanceUID)] = kind

    def _images(self, number: int, kind: str) -> Iterator[Dataset]:
        template = self._lateral if kind == "a lateral" else self._chest
        for index in range(2 if kind == "two images" else 1):
            image = dcmread(BytesIO(template))
            image.StudyInstanceUID = derive_uid("soak", str(self._seed), str(number))
            image.SeriesInstanceUID = derive_uid("soak", str(self._seed), str(number), "series")
            image.SOPInstanceUID = derive_uid("soak", str(self._seed), str(number), str(index))
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            if kind == "damaged pixels":
                image.PixelData = image.PixelData[:1000]
            yield image

    def _send(self, images: list[Dataset]) -> bool:
        """Send a study over one association; tell whether all of it was acknowledged."""
        entity = AE("MODALITY")
        entity.requested_contexts = [build_context(SOP_CLASSES["dx"], ExplicitVRLittleEndian)]
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
        association = entity.associate("127.0.0.1", self._port, ae_title="CXRNODE")
        if not association.is_established:
            return False
        complete = True
        for image in images:
            answer = association.send_c_store(image) if association.is_established else Dataset()
            if answer.get("Status") == 0x0000:
                with self.sent.lock:
                    self.sent.acknowledged[str(image.SOPInstanceUID)] = str(image.StudyInstanceUID)
            else:
                complete = False
        association.release()
        return complete
