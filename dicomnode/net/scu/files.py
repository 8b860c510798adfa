"""Sending DICOM files and folders from the command line, each in the encoding it has."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dicomnode.dicom.part10 import read_file_head, with_even_lengths
from dicomnode.domain.delivery import Accepted, Destination, StoreOutcome
from dicomnode.domain.errors import CxrNodeError, UnreadableObject
from dicomnode.net.scu.outgoing import Outgoing
from dicomnode.net.scu.storage import send
from dicomnode.settings.delivery import DeliverySettings

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
"""A DICOMDIR lists files; it is not sent. Source: PS3.4 I.4."""

# More than any file meta information; files are read whole only when their turn comes.
_HEAD_BYTES = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """What became of one file: an outcome, or the reason why it was not sent at all."""

    path: Path
    outcome: StoreOutcome | None
    skipped: str

    @property
    def delivered(self) -> bool:
        """Whether the peer has the object."""
        return isinstance(self.outcome, Accepted)


Progress = Callable[[SentFile, int, int], None]
"""Called for every file with what became of it, how many are done, and how many there are."""


def send_files(
    destination: Destination,
    paths: Iterable[Path],
    *,
    calling_ae: str,
    settings: DeliverySettings,
    progress: Progress | None = None,
) -> list[SentFile]:
    """Send every DICOM file among `paths` and below the folders among them, in batches of one association each."""
    report: dict[Path, SentFile] = {}
    found = list(dict.fromkeys(_files(paths)))

    def settle(path: Path, *, outcome: StoreOutcome | None = None, skipped: str = "") -> None:
        report[path] = SentFile(path=path, outcome=outcome, skipped=skipped)
        if progress is not None:
            progress(report[path], len(report), len(found))

    sendable: list[tuple[Path, Outgoing]] = []
    for path in found:
        try:
            sendable.append((path, _outgoing(path)))
        except CxrNodeError as error:
            settle(path, skipped=str(error))
    for start in range(0, len(sendable), settings.batch):
        batch = sendable[start : start + settings.batch]
        send(
            destination,
            [item for _, item in batch],
            calling_ae=calling_ae,
            settings=settings,
            report=partial(_settle_position, batch, settle),
        )
    return [report[path] for path in found]


def _settle_position(
    batch: list[tuple[Path, Outgoing]], settle: Callable[..., None], position: int, outcome: StoreOutcome, _: object
) -> None:
    settle(batch[position][0], outcome=outcome)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(entry for entry in path.rglob("*") if entry.is_file())
        else:
            yield path


def _outgoing(path: Path) -> Outgoing:
    head = read_file_head(_read(path, _HEAD_BYTES))
    if head.sop_class == MEDIA_DIRECTORY:
        raise UnreadableObject("a DICOMDIR, which is not sent")
    return Outgoing(sop_class=head.sop_class, transfer_syntax=head.transfer_syntax, read=partial(_read_even, path))


def _read_even(path: Path) -> bytes:
    return with_even_lengths(_read(path))


def _read(path: Path, size: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise UnreadableObject(f"cannot be read: {error.strerror}") from error
