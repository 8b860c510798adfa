"""`cxrnode demo`: run node, archive and page on this machine, with drawn studies or files of one's own."""

import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from dicomnode.cli.process import keep_to_oneself
from dicomnode.cli.terminal import BundleOption, asked_to_stop, err, escape, out
from dicomnode.demo.chest import write_studies
from dicomnode.demo.reading import Reported
from dicomnode.demo.run import SENDER, DemoRun, Outcome, running_demo
from dicomnode.domain.errors import ConfigurationError
from dicomnode.net.scu.files import SentFile
from dicomnode.node import utc_now
from dicomnode.settings.node import LogSettings
from dicomnode.telemetry import log_uncaught, start_logging

_STRONGEST = 3
_MARKS = {"Present": "*", "Undetermined": "?"}
_BINARY = "Abnormal"
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())


def demo(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH...", help="DICOM files and folders instead of drawn chests.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Keep what was sent and what came back here.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when the results are back.")] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the node's page.")] = True,
    bundle: BundleOption = None,
) -> None:
    """Run node and archive on this machine, send studies through them, and show the results, until Ctrl-C."""
    for path in paths or ():
        if not path.exists():
            raise ConfigurationError(f"there is no file or folder {path}: name DICOM files, or none for drawn chests")
    keep_to_oneself()
    start_logging(LogSettings(level="WARNING", format="text"))
    log_uncaught()
    ended = asked_to_stop()
    with _folders(output) as (store, kept):
        _say("Loading the model: hashes and golden vectors are checked before anything is received.")
        with running_demo(store, kept / "archive", bundle=bundle, show_patients=not paths) as run:
            complete, outcomes = _show(run, paths or _draw(kept / "sent"), ended)
            _tell_where(kept, is_kept=output is not None, is_drawn=not paths)
            if not (once or ended.is_set()):
                _stay(run, _to_open(run, outcomes), browser, ended)
    sys.exit(0 if complete else 1)


@contextmanager
def _folders(output: Path | None) -> Iterator[tuple[Path, Path]]:
    """Give the folder of the store, which is removed at the end, and that of the objects, which stays with --out."""
    with tempfile.TemporaryDirectory(prefix="cxrnode-demo-") as temporary:
        kept = output or Path(temporary) / "out"
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{kept} cannot be written to: {error.strerror}; choose another --out") from error
        yield Path(temporary) / "store", kept


def _draw(folder: Path) -> list[Path]:
    studies = write_studies(folder, utc_now())
    _say(f"Drawing {len(studies)} synthetic studies: three frontal chests, and a lateral, which the node rejects.")
    return studies


def _show(run: DemoRun, paths: Sequence[Path], ended: threading.Event) -> tuple[bool, tuple[Outcome, ...]]:
    """Send, wait, and print what came back; return whether every study has its answer, and the answers."""
    _say(f"Node {run.node} and archive {run.archive.peer} are listening.")
    with Progress(*_COLUMNS, console=err, transient=True) as progress:
        task = progress.add_task("sending", total=None)
        report = run.send(paths, lambda _, done, total: progress.update(task, completed=done, total=total))
        sent = [entry for entry in report if entry.delivered]
        _say(f"{SENDER} sent {len(sent)} of {len(report)} files by C-STORE; the node has them on disk.")
        _complain(report)
        progress.update(task, description="analysing", completed=0, total=None)
        outcomes = run.settle(ended, lambda done, total: progress.update(task, completed=done, total=total))
    objects = sum(len(outcome.archived) for outcome in outcomes)
    _say(f"The node answered {len(outcomes)} studies; the archive received {objects} objects:")
    out.print(_table(outcomes))
    for number, outcome in enumerate(outcomes, start=1):
        _tell_files(number, outcome)
    return bool(sent) and len(sent) == len(report) and not ended.is_set(), outcomes


def _complain(report: Sequence[SentFile]) -> None:
    for entry in report:
        if not entry.delivered:
            cause = entry.skipped or getattr(entry.outcome, "cause", "")
            out.print(f"   {escape(entry.path.name)} was not sent: {escape(cause)}")
    if not report:
        out.print("   There is no file among what was given.")


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(caption="* above its threshold, ? undetermined", caption_justify="left")
    table.add_column("study", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("abnormal", no_wrap=True)
    table.add_column("strongest findings, or why there are none")
    table.add_column("sent back", no_wrap=True)
    for number, outcome in enumerate(outcomes, start=1):
        findings = [finding for finding in outcome.findings if finding.label != _BINARY]
        ranked = sorted(findings, key=lambda finding: -finding.probability)[:_STRONGEST]
        findings_text = ", ".join(f"{finding.label} {_marked(finding)}" for finding in ranked) or _why_none(outcome)
        abnormal = ", ".join(_marked(finding) for finding in outcome.findings if finding.label == _BINARY)
        cells = (str(number), outcome.state.value, abnormal, findings_text, f"{len(outcome.archived)} objects")
        table.add_row(*map(escape, cells))
    return table


def _marked(finding: Reported) -> str:
    return f"{finding.probability:.2f}{_MARKS.get(finding.presence, '')}"


def _why_none(outcome: Outcome) -> str:
    return "; ".join(f"{entry.reason.value}: {entry.detail}" for entry in outcome.rejections) or outcome.reason


def _tell_files(number: int, outcome: Outcome) -> None:
    for entry in outcome.archived:
        out.print(f"   study {number}, {entry.kind}: {escape(str(entry.file))}")
    for picture in outcome.pictures:
        out.print(f"   study {number}, heatmap to look at: {escape(str(picture))}")


def _tell_where(kept: Path, *, is_kept: bool, is_drawn: bool) -> None:
    if is_kept:
        out.print(f"   Everything is kept in {escape(str(kept))}.")
    else:
        out.print("   All of it is removed at the end; --out DIR keeps it.")
    if is_drawn:
        out.print("   The findings in synthetic chests have no meaning.")
    out.print("   Research use only, not for diagnosis.")


def _to_open(run: DemoRun, outcomes: Sequence[Outcome]) -> str | None:
    """Return the page of the first study that has pictures, or the node's own."""
    study = next((outcome.study for outcome in outcomes if outcome.pictures), None)
    return run.page if study is None else run.page_of(study)


def _stay(run: DemoRun, page: str | None, browser: bool, ended: threading.Event) -> None:
    """Open the page, and wait for Ctrl-C."""
    if page is not None:
        _say(f"The node's page shows the first result: {page}")
        if browser:
            webbrowser.open(page)
    out.print(f"   Send it more: cxrnode send {run.node} PATH...   Ctrl-C ends the demo.")
    ended.wait()


def _say(text: str) -> None:
    out.print(f"[bold]>[/]  {escape(text)}")
