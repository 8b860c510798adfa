"""`cxrnode data`: from a release's images and tables to checked records, and a look at what they hold."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dicomnode.cli.terminal import err, escape, out
from dicomnode.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from modeling.preparation.prepare import PreparationRequest

data = typer.Typer(no_args_is_help=True, help="Prepare images and labels for training, and look at them.")

_LINE_EVERY_S = 10.0
_RATE_AFTER_S = 0.5


class ImageFormat(StrEnum):
    """How images stand in the records: without loss, or smaller."""

    PNG = "png"
    JPEG = "jpeg"


ImagesOption = Annotated[Path, typer.Option("--images", metavar="DIR|ZIP", help="PNG and JPEG files, any subfolders.")]
LabelsOption = Annotated[Path, typer.Option("--labels", metavar="CSV", help="NIH's Data_Entry_2017, plain or gzip.")]
OfficialSplitOption = Annotated[
    Path | None,
    typer.Option("--official-split", metavar="DIR", help="Folder of train_val_list.txt and test_list.txt."),
]
RandomSplitOption = Annotated[
    str | None,
    typer.Option(
        "--random-split",
        metavar="80/5/15",
        help="Percent of training, validation and test images, by patient, in place of --official-split and --folds.",
    ),
]
BinaryLabelsOption = Annotated[
    list[Path] | None,
    typer.Option("--binary-labels", metavar="TXT", help="Lists of 'NAME 0|1' for the binary head; repeatable."),
]
MinSideOption = Annotated[
    int | None, typer.Option("--min-side", min=1, help="Leave out images with a shorter side; by default --side.")
]
MinPositivesOption = Annotated[
    int, typer.Option("--min-positives", min=0, help="Of each finding in each fold; 0 accepts any.")
]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return images a second, once known."""
        return Text("" if not task.speed else f"{task.speed:.0f}/s")


class _Reporter:
    """Shows progress as a bar on a terminal, and as a line every ten seconds elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("reading", total=None)
        self._what = ""
        self._began = self._told = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell that so many images are done."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._told = what, now, now
            self._progress.reset(self._task, description=what, total=total)
        self._progress.update(self._task, completed=done)
        if not err.is_terminal and (now - self._told >= _LINE_EVERY_S or done == total > 0):
            self._told = now
            elapsed = now - self._began
            rate = f", {done / elapsed:.0f}/s" if elapsed > _RATE_AFTER_S else ""
            err.print(f"{what}: {done} of {total} images{rate}")


@data.command()
def prepare(
    images: ImagesOption,
    labels: LabelsOption,
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The records; an unfinished run goes on.")],
    official_split: OfficialSplitOption = None,
    random_split: RandomSplitOption = None,
    binary_labels: BinaryLabelsOption = None,
    folds: Annotated[
        int | None, typer.Option("--folds", min=2, max=100, help="Folds that no patient crosses; by default 5.")
    ] = None,
    side: Annotated[int, typer.Option("--side", min=32, max=2048, help="Side of the stored squares in pixels.")] = 256,
    min_side: MinSideOption = None,
    image_format: Annotated[ImageFormat, typer.Option("--format", help="png is lossless.")] = ImageFormat.PNG,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Images in a record file.")] = 1000,
    min_positives: MinPositivesOption = 1,
    processes: Annotated[int | None, typer.Option("--processes", min=1, help="By default one a core.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the folds and the order.")] = 0,
) -> None:
    """Check images and labels, assign patient-wise folds, and write TFRecords; nothing is dropped in silence."""
    with _training_extra():
        from modeling.preparation.prepare import PreparationRequest
        from modeling.preparation.splits import parse_shares
    if random_split is not None and (official_split is not None or folds is not None):
        raise ConfigurationError("--random-split goes with neither --official-split nor --folds")
    shares = None if random_split is None else parse_shares(random_split)
    request = PreparationRequest(
        images=images,
        labels=labels,
        out=output,
        official_split=official_split,
        random_split=shares,
        binary_labels=tuple(binary_labels or ()),
        folds=shares.folds if shares else folds or 5,
        side=side,
        min_side=min_side,
        image_format=image_format.value,
        shard_size=shard_size,
        min_positives=min_positives,
        processes=processes or os.cpu_count() or 1,
        seed=seed,
    )
    _prepare(request)


def _prepare(request: "PreparationRequest") -> None:
    from modeling.preparation.prepare import PROBLEMS, prepare

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        prepared = prepare(request, _Reporter(progress))
    counts: Counter[str] = Counter()
    for shard in prepared.info.shards:
        counts["test" if shard.fold is None else f"fold {shard.fold}"] += shard.count
    table = Table("part", "images")
    for name, number in counts.items():
        table.add_row(name, str(number))
    out.print(table)
    for kind, number in prepared.problems.items():
        out.print(f"{number} {kind}")
    folder = escape(str(request.out))
    listed = f"; every problem is listed in {folder}/{PROBLEMS}" if prepared.problems else ""
    out.print(f"{counts.total()} images in {len(prepared.info.shards)} files of {folder}{listed}")


@data.command()
def summary(
    source: Annotated[
        Path, typer.Option("--data", "--labels", metavar="DIR|CSV", help="Prepared folder, TFRecords, or a table.")
    ],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where PNG and JSON are written.")],
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR|ZIP", help="A table's images, for the sample sheet.")
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", metavar="NAME=FILE", help="A list of images to look for overlaps with; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the samples drawn.")] = 0,
) -> None:
    """Count labels, pairs of labels, views, ages, sexes, folds and shared patients; draw sheets of samples."""
    with _training_extra():
        from modeling.preparation.summary import write_summary
    named = dict(_named_list(text) for text in lists or ())
    if len(named) < len(lists or ()):
        raise ConfigurationError("two lists have the same name")
    written = write_summary(source, output, images=images, lists=named, seed=seed)
    counted = written.summary
    table = Table("finding", "images", "patients")
    for group, count in counted.findings.items():
        table.add_row(group, str(count.images), str(count.patients))
    out.print(table)
    out.print(f"{counted.images} images of {counted.patients or 'unknown'} patients")
    for shared in counted.overlaps:
        pair, counts_shared = (
            escape(f"{shared.first} and {shared.second}"),
            f"{shared.images} images, {shared.patients} patients",
        )
        if shared.within:
            out.print(f"one of {pair} lies within the other: {counts_shared}")
        elif shared.leaks:
            out.print(f"[bold red]shared[/] by {pair}: {counts_shared}")
    if counted.overlaps and not any(shared.leaks for shared in counted.overlaps):
        out.print(f"none of {len(counted.overlaps)} pairs of parts and lists leaks into the other")
    out.print("written: " + ", ".join(escape(str(path)) for path in written.files))


def _named_list(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise ConfigurationError(f"--list wants NAME=FILE, not {text!r}")
    return name, Path(path)


@contextmanager
def _training_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"preparing data needs the extra packages ({error.name} is missing): pip install 'cxrnode[train]'"
        ) from error
