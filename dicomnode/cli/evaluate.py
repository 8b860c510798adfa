"""`cxrnode evaluate` and `cxrnode compare`: what a bundle is worth on labelled images."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dicomnode.bundle.reader import Bundle, open_bundle
from dicomnode.cli.pictures import frame_of
from dicomnode.cli.terminal import BundleOption, err, escape, out
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.inference.gate import judge_pixels
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.node import PixelSettings, default_bundle

if TYPE_CHECKING:
    from modeling.evaluation.compare import Comparison
    from modeling.evaluation.evaluate import Evaluation
    from modeling.evaluation.reading import ReadyBundle

RoundsOption = Annotated[int, typer.Option("--bootstrap", metavar="N", min=100, help="Bootstrap samples of patients.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")]
_NEEDS_EXTRA = "evaluation needs the extra packages ({} is missing): pip install 'cxrnode[train]'"


def evaluate(
    images: Annotated[Path, typer.Option("--images", metavar="DIR|ZIP", help="PNG, JPEG or DICOM images.")],
    labels: Annotated[Path, typer.Option("--labels", metavar="CSV", help="NIH's table, or a subset's manifest.csv.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where everything is written.")],
    bundle: BundleOption = None,
    split: Annotated[
        Path | None, typer.Option("--split", metavar="TXT", help="Only the images of this list (test_list.txt).")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option("--boxes", metavar="CSV", help="NIH's BBox_List_2017.csv, for the pointing game.")
    ] = None,
    rounds: RoundsOption = 2000,
    seed: SeedOption = 1,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads of the model; 0: one per core.")] = 0,
) -> None:
    """Measure a bundle on labelled images: predictions, metrics with intervals, plots, and a report."""
    try:
        from modeling.evaluation.evaluate import REPORT, EvaluationProgress, EvaluationRequest
        from modeling.evaluation.evaluate import evaluate as run
    except ModuleNotFoundError as error:
        raise ConfigurationError(_NEEDS_EXTRA.format(error.name)) from error

    from dicomnode.node import utc_now

    opened = open_bundle(bundle or default_bundle())
    request = EvaluationRequest(
        images=images, labels=labels, out=output, split=split, boxes=boxes, rounds=rounds, seed=seed
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
        reading = progress.add_task("reading images", total=None)
        watch = EvaluationProgress(
            images=lambda done, total: progress.update(reading, completed=done, total=total),
            stage=lambda name: progress.update(reading, description=name),
        )
        found = run(request, opened, _ensemble(opened, threads), watch, utc_now())
    out.print(_labels_table(found))
    _print_summary(found)
    out.print(f"report: {escape(str(output / REPORT))}")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders that evaluate wrote.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the comparison is written.")] = Path(
        "comparison"
    ),
    rounds: RoundsOption = 2000,
    seed: SeedOption = 1,
) -> None:
    """Compare evaluations of the same images: AUC per label, DeLong's test, bootstrap of the differences."""
    try:
        from modeling.evaluation.compare import REPORT, write_comparison
        from modeling.evaluation.compare import compare as run
    except ModuleNotFoundError as error:
        raise ConfigurationError(_NEEDS_EXTRA.format(error.name)) from error

    with err.status("comparing") as status:
        comparison = run(runs, rounds=rounds, seed=seed, stage=status.update)
        write_comparison(output, comparison)
    out.print(_differences_table(comparison))
    out.print(f"{comparison.images} images of {comparison.patients} patients are in every run")
    for one in comparison.not_shared:
        labels = f" and {len(one.labels)} labels" if one.labels else ""
        out.print(f"left out: {len(one.images)} images{labels} that {escape(one.run)} has and another run lacks")
    out.print(f"report: {escape(str(output / REPORT))}")


def _ensemble(bundle: Bundle, threads: int) -> "ReadyBundle":
    """Return the bundle as evaluation wants it: rendering and the model are the node's own."""
    from modeling.evaluation.reading import Answer, ReadyBundle

    predictor = Predictor(bundle, threads=threads)
    predictor.replay_golden()
    settings, gate = PixelSettings(), bundle.manifest.gate

    def read_all(radiographs: Sequence[FloatArray]) -> list[Answer]:
        return [
            Answer(
                scores=reading.scores,
                saliency=reading.saliency,
                gate=type(judge_pixels(reading, gate)).__name__.lower(),
            )
            for reading in predictor.read_batch(radiographs)
        ]

    codecs = CodecProcess()
    decode: Callable[[bytes], FloatArray] = lambda raw: frame_of(raw, settings, codecs).pixels  # noqa: E731
    labels = tuple(label.name for label in bundle.manifest.labels)
    return ReadyBundle(labels=labels, decode=decode, read=read_all)


def _labels_table(found: "Evaluation") -> Table:
    table = Table(caption="95 % intervals of whole patients; a dash: too few images", caption_justify="left")
    for column in ("label", "positives", "AUC", "view alone", "ECE"):
        table.add_column(column, justify="left" if column == "label" else "right", no_wrap=True)
    for label, result in found.measured.labels.items():
        others = (f"{one.value:.3f}" if one else "-" for one in (result.view_only_auc, result.ece))
        table.add_row(label, str(result.positives), str(result.auc or "-"), *others)
    return table


def _print_summary(found: "Evaluation") -> None:
    measured = found.measured
    mean = measured.mean_of_findings
    if mean.auc is not None and mean.members is not None:
        members = f"{mean.members.mean:.3f} ± {mean.members.sd:.3f}"
        out.print(f"mean AUC of {len(mean.labels)} findings: {mean.auc}; members alone {members}")
    out.print(f"{measured.images} images of {measured.patients} patients read")
    kinds = Counter(problem.kind.value for problem in found.problems)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        out.print(f"[yellow]problems, listed in skipped.csv:[/] {listed}")


def _differences_table(comparison: "Comparison") -> Table:
    from modeling.evaluation.report import shown

    table = Table(caption="second minus first; 95 % intervals of whole patients", caption_justify="left")
    for column in ("first", "second", "label", "difference in AUC", "DeLong p"):
        table.add_column(column, justify="right" if column in {"difference in AUC", "DeLong p"} else "left")
    for one in comparison.differences:
        p_value = "" if one.delong is None else f"{one.delong.p_value:.2g}"
        table.add_row(escape(one.first), escape(one.second), one.label, shown(one.bootstrap), p_value)
    return table
