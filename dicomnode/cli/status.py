"""`cxrnode status`: the state of the node in the terminal, once or repeatedly."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dicomnode.cli.queue import open_beside_node
from dicomnode.cli.terminal import ConfigOption, StoreOption, escape, out, settings_from
from dicomnode.domain.job import JobState
from dicomnode.formatting import format_age, format_time
from dicomnode.monitoring.status import Status, look
from dicomnode.node import utc_now
from dicomnode.store.counters import DestinationFigures

_STATES = {
    JobState.COLLECTING: "still arriving",
    JobState.WAITING: "waiting to be tried again",
    JobState.WORKING: "in work",
    JobState.DEAD: "dead letters",
}


def status(
    config: ConfigOption = None,
    store: StoreOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it repeatedly, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.2, metavar="SECONDS", help="How often, with --watch.")] = 2,
) -> None:
    """Show the state of the node; works beside a running node and without one.

    Exit code 0: the node runs, and nothing needs attention.

    1: no node runs, a check fails, there is a dead letter, a destination is down,
    a commitment is overdue, or little disk is free.

    2: the configuration is wrong.

    Example: cxrnode status --config node.toml --watch
    """
    settings = settings_from(config, store=store)
    with open_beside_node(config, store) as opened:
        if watch and not as_json:
            with Live(console=out, auto_refresh=False, screen=False) as live:
                for _ in _ticks(every_s):
                    live.update(shown(look(opened, settings, utc_now())), refresh=True)
            return
        found = look(opened, settings, utc_now())
    if as_json:
        sys.stdout.write(json.dumps(found.as_json(), indent=2) + "\n")
    else:
        out.print(shown(found))
    sys.exit(0 if found.passed else 1)


def shown(found: Status) -> RenderableType:
    """Return a status for people."""
    return Group(
        Text.from_markup(_headline(found)),
        *(Text.from_markup(_check(check.name, check.passed, check.reason)) for check in found.checks),
        *(Text.from_markup(f"[red]![/]   {escape(alarm.text)}") for alarm in found.alarms),
        "",
        _studies(found),
        _destinations(found.destinations, found.at),
    )


def _ticks(every_s: float) -> Iterator[None]:
    """Yield until Ctrl-C."""
    try:
        while True:
            yield
            time.sleep(every_s)
    except KeyboardInterrupt:
        return


def _headline(found: Status) -> str:
    colour = "green" if found.passed else "yellow" if found.running else "red"
    return f"[bold {colour}]{escape(found.said)}[/]  {format_time(found.at)}"


def _check(name: str, passed: bool, reason: str) -> str:
    mark = "[green]ok[/]  " if passed else "[red]no[/]  "
    return f"{mark}{escape(name)}: {escape(reason)}"


def _studies(found: Status) -> Table:
    table = Table("studies", "", "oldest", box=None, pad_edge=False)
    for state, waiting in found.operations.jobs.items():
        table.add_row(_STATES[state], str(waiting.count), format_age(waiting.age_s(found.at)))
    for outcome, count in sorted(found.operations.outcomes.items()):
        table.add_row(f"{outcome} so far", str(count), "")
    return table


def _destinations(destinations: tuple[DestinationFigures, ...], now: datetime) -> RenderableType:
    if not destinations:
        return Text("no destination is configured: results stay in the store")
    table = Table("destination", "state", "waiting", "oldest", "dead", "delivered", "failed", box=None, pad_edge=False)
    for entry in destinations:
        state = {True: "[green]up[/]", False: "[red]down[/]", None: "not tried"}[entry.is_up]
        if entry.overdue_commitments:
            state += f", {entry.overdue_commitments} not committed in time"
        numbers = (str(entry.dead), str(entry.delivered), str(entry.failed))
        age = format_age(entry.waiting.age_s(now))
        table.add_row(escape(entry.name), state, str(entry.waiting.count), age, *numbers)
    return table
