"""`cxrnode queue`: list unfinished analyses and deliveries; try them again, drop them, or analyse studies again."""

import re
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dicomnode.cli.terminal import ConfigOption, StoreOption, account, escape, out, settings_from
from dicomnode.domain.commitment import CommitmentState
from dicomnode.domain.delivery import DeliveryState
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.identifiers import is_valid_uid
from dicomnode.domain.job import JobState
from dicomnode.formatting import format_due, format_time
from dicomnode.node import utc_now
from dicomnode.store import Store
from dicomnode.store.counters import UNANSWERED
from dicomnode.store.ledger import DeliveryEntry, JobEntry
from dicomnode.store.operator import AllDead, Changed, OfStudy, OneDelivery, OneJob, Selection
from dicomnode.store.studies import StudyQuery

queue = typer.Typer(
    no_args_is_help=True, help="List what waits or failed, with the reason; try it again, give it up, analyse again."
)

_UNFINISHED_DELIVERIES = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.DEAD)
_PER_PAGE = 500
_ENTRY = re.compile(r"(?P<kind>[AaDd])(?P<number>[0-9]{1,18})")

EntryArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ENTRY...", help="A12 or D34, as listed, or a Study Instance UID.")
]
StudiesArgument = Annotated[list[str] | None, typer.Argument(metavar="STUDY_UID...", help="Study Instance UID.")]
AllRejectedOption = Annotated[
    bool, typer.Option("--all-rejected", help="Every study that was not analysed and whose images are kept.")
]
AllDeadOption = Annotated[bool, typer.Option("--all-dead", help="Every dead letter.")]


@queue.command("list")
def list_entries(
    config: ConfigOption = None,
    store: StoreOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many of each kind.")] = 100,
) -> None:
    """List analyses (A…) and deliveries (D…) that are not finished, oldest first."""
    with open_beside_node(config, store) as opened:
        jobs = opened.ledger.jobs(UNANSWERED, limit=limit)
        deliveries = opened.ledger.deliveries(_UNFINISHED_DELIVERIES, limit=limit)
        uncommitted = opened.ledger.uncommitted(limit=limit)
        operations = opened.watching.operations()
    if jobs or deliveries or uncommitted:
        out.print(_table(jobs, (*deliveries, *uncommitted), utc_now()))
    dead, dead_deliveries = operations.jobs[JobState.DEAD].count, operations.dead_deliveries
    unfinished = sum(found.count for found in operations.jobs.values())
    undelivered = sum(entry.waiting.count for entry in operations.destinations.values()) + dead_deliveries
    out.print(
        f"{unfinished} analyses and {undelivered} deliveries unfinished; "
        f"dead letters among them: {dead} and {dead_deliveries}"
    )
    if overdue := sum(entry.overdue_commitments for entry in operations.destinations.values()):
        out.print(f"{overdue} results are delivered, but their destination has not answered for keeping them in time")
    if operations.waiting.since is not None:
        out.print(f"the oldest has waited since {format_time(operations.waiting.since)}")


@queue.command()
def show(
    study: Annotated[str, typer.Argument(metavar="STUDY_UID", help="Study Instance UID.")],
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """Show every version of a study's answer, every delivery of its results, and every rejected image."""
    with open_beside_node(config, store) as opened:
        opened.ledger.explain(checked_uid(study))
        jobs, deliveries = opened.ledger.jobs_of(study), opened.ledger.deliveries_of(study)
        rejections = opened.ledger.rejections_of(study)
    out.print(_table(jobs, deliveries, utc_now()))
    for entry in rejections:
        out.print(
            f"version {entry.version}: {entry.sop_instance} was not analysed, "
            f"{entry.reason.value}: {escape(entry.detail)}"
        )


@queue.command()
def retry(
    entries: EntryArgument = None,
    all_dead: AllDeadOption = False,
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """Try again now what waits, is dead, or was dropped; a running node takes it up within a second.

    Exit code 0: something is tried again.
    1: nothing was in a state to be tried again.
    2: there is no such entry.

    Examples: cxrnode queue retry D34 · cxrnode queue retry --all-dead
    """
    _act(
        entries,
        all_dead,
        config,
        store,
        lambda opened, chosen: opened.ledger.retry(chosen, utc_now()),
        "to be tried again",
    )


@queue.command()
def drop(
    entries: EntryArgument = None,
    all_dead: AllDeadOption = False,
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """Give up what waits or is dead; its records stay, and `retry` brings it back.

    Exit code 0: something is given up.
    1: nothing was in a state to be given up.
    2: there is no such entry.
    """
    _act(entries, all_dead, config, store, lambda opened, chosen: opened.ledger.drop(chosen, utc_now()), "dropped")


@queue.command()
def reanalyse(
    studies: StudiesArgument = None,
    all_rejected: AllRejectedOption = False,
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """Analyse finished studies again, with the present model and settings; equal results are not sent again."""
    if bool(studies) == all_rejected:
        raise ConfigurationError("name studies by their Study Instance UIDs, or --all-rejected, not both")
    named = [checked_uid(study) for study in studies or ()]
    by = f"{account()}, at a terminal,"
    with open_beside_node(config, store) as opened:
        chosen = _rejected(opened) if all_rejected else named
        asked = [opened.ledger.analyse_again(study, by, utc_now()) for study in chosen]
    for answer in asked:
        if answer.version is None:
            out.print(f"{answer.study} is not analysed again: {answer.why_not}")
    count = sum(answer.version is not None for answer in asked)
    out.print(f"{count} studies will be analysed again")
    if not count:
        sys.exit(1)


def _rejected(opened: Store) -> list[str]:
    """Return every study whose newest answer is a rejection and whose images are kept, the oldest first."""
    found: list[str] = []
    before: int | None = None
    while page := opened.studies.page(StudyQuery(states=(JobState.REJECTED,)), limit=_PER_PAGE, before=before):
        found += [entry.study for entry in page if entry.is_kept]
        before = page[-1].number
    return found[::-1]


def open_beside_node(config: Path | None, store: Path | None) -> Store:
    """Open the store without claiming it, so that a node may be running on it."""
    settings = settings_from(config, store=store)
    return Store.open(settings.store, settings.assembly, exclusive=False)


def _act(
    entries: list[str] | None,
    all_dead: bool,
    config: Path | None,
    store: Path | None,
    action: Callable[[Store, Selection], Changed],
    done: str,
) -> None:
    if bool(entries) == all_dead:
        raise ConfigurationError("name entries (A12, D34 or a Study Instance UID), or --all-dead, not both")
    selections = [AllDead()] if all_dead else [_selection(entry) for entry in entries or ()]
    with open_beside_node(config, store) as opened:
        for selection in selections:
            _require_entry(opened, selection)
        changes = [action(opened, selection) for selection in selections]
    jobs, deliveries = sum(change.jobs for change in changes), sum(change.deliveries for change in changes)
    out.print(f"{jobs} analyses and {deliveries} deliveries {done}")
    if not jobs + deliveries:
        sys.exit(1)


def _require_entry(opened: Store, selection: Selection) -> None:
    """Refuse an entry that is not in the store.

    Raises: ConfigurationError.
    """
    name = ""
    if isinstance(selection, OneJob):
        jobs = opened.ledger.jobs(tuple(JobState), limit=1, after=selection.job_id - 1)
        name = "" if selection.job_id in {entry.job_id for entry in jobs} else f"A{selection.job_id}"
    if isinstance(selection, OneDelivery):
        found = opened.ledger.deliveries(tuple(DeliveryState), limit=1, after=selection.delivery_id - 1)
        name = "" if selection.delivery_id in {entry.delivery_id for entry in found} else f"D{selection.delivery_id}"
    if name:
        raise ConfigurationError(f"there is no such entry: {name}; `cxrnode queue list` lists them")


def _selection(entry: str) -> Selection:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return OfStudy(study=checked_uid(entry))
    number = int(match["number"])
    return OneJob(job_id=number) if match["kind"] in "Aa" else OneDelivery(delivery_id=number)


def checked_uid(text: str) -> str:
    """Return a Study Instance UID as typed. Raises: ConfigurationError, if it is none."""
    if not is_valid_uid(text):
        raise ConfigurationError(f"{text!r} is not a Study Instance UID")
    return text


def _table(jobs: tuple[JobEntry, ...], deliveries: tuple[DeliveryEntry, ...], now: datetime) -> Table:
    table = Table("entry", "state")
    table.add_column("study", overflow="fold", min_width=24)
    for heading in ("what", "tries", "next try", "why"):
        table.add_column(heading)
    for row in (*_job_rows(jobs, now), *_delivery_rows(deliveries, now)):
        table.add_row(*(escape(cell) for cell in row))
    return table


def _job_rows(jobs: tuple[JobEntry, ...], now: datetime) -> Iterator[tuple[str, ...]]:
    for entry in jobs:
        what = f"analysis, version {entry.version}, {entry.instances} images"
        yield (
            f"A{entry.job_id}",
            entry.state.value,
            entry.study,
            what,
            str(entry.attempts),
            format_due(entry.due_at, now),
            entry.last_error or "",
        )


def _delivery_rows(deliveries: tuple[DeliveryEntry, ...], now: datetime) -> Iterator[tuple[str, ...]]:
    for entry in deliveries:
        yield (
            f"D{entry.delivery_id}",
            delivery_state(entry),
            entry.study,
            f"{entry.kind.value.upper()} to {entry.destination}",
            str(entry.attempts),
            format_due(entry.next_attempt_at or entry.commitment_next_at, now),
            entry.last_error or entry.commitment_error or "",
        )


def delivery_state(entry: DeliveryEntry) -> str:
    """Return how far a result has come, as far as its destination has answered for keeping it."""
    if entry.state is not DeliveryState.DELIVERED or entry.commitment is None:
        return entry.state.value
    return f"{entry.state.value}, {_COMMITMENTS[entry.commitment]}"


_COMMITMENTS = {
    CommitmentState.DUE: "commitment to be asked for",
    CommitmentState.REQUESTED: "commitment asked for",
    CommitmentState.OVERDUE: "commitment overdue",
    CommitmentState.COMMITTED: "committed",
    CommitmentState.FAILED: "not committed",
}
