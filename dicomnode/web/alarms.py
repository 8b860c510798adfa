"""What needs an operator: the same list for the banner of every page, the page of problems and `cxrnode status`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dicomnode.formatting import format_size, format_time
from dicomnode.store.counters import DestinationFigures, Operations


class AlarmKind(StrEnum):
    """What an alarm is about. The values are stable: programs read them in `cxrnode status --json`."""

    DEAD_LETTERS = "dead-letters"
    DESTINATION_DOWN = "destination-down"
    COMMITMENTS_OVERDUE = "commitments-overdue"
    DISK_LOW = "disk-low"
    DRIFT = "drift"
    IMAGES_WITHOUT_ROW = "images-without-row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One thing that does not mend itself, or has not yet, in one or two sentences.

    `destination` is empty unless the alarm is about one. `delivery_id`: the delivery that an operator can try at once.
    """

    kind: AlarmKind
    text: str
    destination: str = ""
    delivery_id: int | None = None

    def as_json(self) -> dict[str, object]:
        """Return plain values."""
        return {"kind": self.kind.value, "text": self.text, "destination": self.destination}


def alarms(
    operations: Operations, configured: Sequence[str], now: datetime, *, free_bytes: int, minimum_free_bytes: int
) -> tuple[Alarm, ...]:
    """Return the alarms of a store; `configured` are the names of the destinations in the settings."""
    found: list[Alarm] = []
    if operations.dead:
        found.append(Alarm(kind=AlarmKind.DEAD_LETTERS, text=_dead_letters(operations)))
    for entry in operations.destinations_with(configured):
        found += _of_destination(entry, now)
    if operations.images_without_row:
        count = _counted(operations.images_without_row, "received image is", "received images are")
        text = (
            f"{count} unknown to the database, as after the restore of an older one. "
            "Stop the node and run `cxrnode store check --repair`, which takes them in."
        )
        found.append(Alarm(kind=AlarmKind.IMAGES_WITHOUT_ROW, text=text))
    if free_bytes < 2 * minimum_free_bytes:
        least = format_size(minimum_free_bytes)
        text = f"{format_size(free_bytes)} of disk are free. New images are refused below {least}."
        found.append(Alarm(kind=AlarmKind.DISK_LOW, text=text))
    return tuple(found)


def _dead_letters(operations: Operations) -> str:
    studies, results = operations.dead - operations.dead_deliveries, operations.dead_deliveries
    parts = [
        _counted(studies, "study was not analysed", "studies were not analysed") if studies else "",
        _counted(results, "result was not delivered", "results were not delivered") if results else "",
    ]
    return f"Dead letters: {' and '.join(part for part in parts if part)}. They are not tried again by themselves."


def _of_destination(entry: DestinationFigures, now: datetime) -> Iterator[Alarm]:
    if entry.is_up is False:
        yield Alarm(
            kind=AlarmKind.DESTINATION_DOWN,
            text=_down(entry, now),
            destination=entry.name,
            delivery_id=entry.next_delivery_id,
        )
    if entry.overdue_commitments:
        count = _counted(entry.overdue_commitments, "result that it was sent", "results that it was sent")
        text = f"{entry.name} has not confirmed in time that it keeps {count}."
        yield Alarm(kind=AlarmKind.COMMITMENTS_OVERDUE, text=text, destination=entry.name)


def _down(entry: DestinationFigures, now: datetime) -> str:
    since = f"since {format_time(entry.last_delivered_at)}" if entry.last_delivered_at else "so far"
    failures = _counted(entry.failures_in_row, "attempt has failed", "attempts have failed in a row")
    why = f": {entry.last_error}" if entry.last_error else ""
    text = (
        f"{entry.name} has taken no result {since}. {failures}, the last at {format_time(entry.last_failed_at)}{why}."
    )
    if entry.next_try_at is not None:
        waiting = _counted(entry.waiting.count, "result waits", "results wait")
        due = "due now" if entry.next_try_at <= now else f"at {format_time(entry.next_try_at)}"
        text += f" {waiting}; the next try is {due}."
    return text


def _counted(count: int, singular: str, plural: str) -> str:
    return f"{count} {singular if count == 1 else plural}"
