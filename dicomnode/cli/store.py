"""`cxrnode store`: check that a store is whole, and repair one that is not."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from dicomnode.cli.terminal import ConfigOption, StoreOption, escape, out, settings_from
from dicomnode.dicom.header import read_header
from dicomnode.dicom.part10 import read_file_head, read_ref
from dicomnode.domain.errors import ConfigurationError, UnreadableObject
from dicomnode.domain.instance import InstanceRef
from dicomnode.imaging.eligibility import is_own_result
from dicomnode.node import utc_now
from dicomnode.settings.node import Settings
from dicomnode.store.engine.lock import StoreLock
from dicomnode.store.layout import BLOBS, DATABASE, LOCK
from dicomnode.store.repair import StoreCheck, check_store, opened, rebuild, repair

store = typer.Typer(no_args_is_help=True, help="Check that a store is whole, and repair one that is not.")


@store.callback()
def _commands() -> None:
    """Keep `check` a command of its own although it is the only one."""


@store.command("check")
def check(
    config: ConfigOption = None,
    folder: StoreOption = None,
    mend: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Rebuild a damaged database from the images, take in images without a row, move damaged files aside.",
        ),
    ] = False,
) -> None:
    """Read the whole store of a node that does not run; exit 0 when all is well, 1 when not. Deletes nothing."""
    settings = settings_from(config, store=folder)
    path = settings.store.path
    if not any((path / name).exists() for name in (DATABASE, BLOBS)):
        raise ConfigurationError(f"there is no store at {path}")
    lock = StoreLock.acquire(path / LOCK)
    try:
        checks = check_store(path)
        if mend and any(entry.wrong for entry in checks):
            out.print(_table(checks))
            _repair(settings, damaged=checks[0].name == "database")
            checks = check_store(path)
    finally:
        lock.release()
    out.print(_table(checks))
    wrong = sum(entry.wrong for entry in checks)
    out.print("all is well" if not wrong else f"[bold red]{wrong} wrong[/]")
    sys.exit(1 if wrong else 0)


def _repair(settings: Settings, *, damaged: bool) -> None:
    path, now = settings.store.path, utc_now()
    if damaged:
        rebuilt = rebuild(path, settings.assembly, _identify, now)
        former = "" if rebuilt.former is None else f"; the former one is in {rebuilt.former.name}"
        out.print(escape(f"the database was rebuilt: {rebuilt.images} images, {rebuilt.studies} studies{former}"))
    with opened(path) as database:
        done = repair(path, database, settings.assembly, _identify, now)
    if done.written_off:
        out.print(
            f"{done.written_off} damaged or missing blobs were written off; "
            "`cxrnode queue list` shows what was owed for them"
        )
    if done.taken_in:
        out.print(f"{done.taken_in} acknowledged images without a row were taken in; the next start analyses them")
    if done.quarantined:
        out.print(f"{done.quarantined} files that hold no readable or no current image were moved to quarantine")


def _identify(part10: bytes) -> tuple[InstanceRef, str] | None:
    """Return the UIDs and transfer syntax of a received image, and nothing for the node's own results.

    The head is read as on reception, so that what could be received can be rebuilt.
    """
    try:
        head = read_file_head(part10)
        ref = read_ref(part10[head.offset :], head.transfer_syntax)
    except UnreadableObject:
        return None
    try:
        own = is_own_result(read_header(part10))
    except UnreadableObject:
        own = False
    return None if own else (ref, head.transfer_syntax)


def _table(checks: Sequence[StoreCheck]) -> Table:
    table = Table()
    for column in ("what", "examined", "wrong", ""):
        table.add_column(column, justify="right" if column in {"examined", "wrong"} else "left", overflow="fold")
    for found in checks:
        mark = "[bold red]" if found.wrong else "[green]"
        table.add_row(escape(found.name), str(found.examined), f"{mark}{found.wrong}[/]", escape(found.detail))
    return table
