"""`cxrnode evaluate` and `cxrnode compare`: what a bundle is worth on labelled images."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from dicomnode.node import utc_now
from dicomnode.settings.node import PixelSettings, default_bundle

if TYPE_CHECKING:
    from modeling.evaluation.compare import Comparison
    from modeling.evaluation.evaluate import Evaluation, EvaluationProgress, EvaluationRequest
    from modeling.evaluation.reading import ReadyBundle
    from modeling.evaluation.unlabelled import UnlabelledRequest

RoundsOption = Annotated[int, typer.Option("--bootstrap", metavar="N", min=100, help="Bootstrap samples of patients.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")]
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="CSV", help="NIH's table or a subset's; else manifest.csv among the images."),
]
EverIllOption = Annotated[
    bool, typer.Option("--ever-ill", help="Tell patients who were ever ill from others, by all rows of the table.")
]
PatientTableOption = Annotated[
    Path | None,
    typer.Option("--patient-table", metavar="CSV", help="Table of all images of the patients; else --labels."),
]
MatchedOption = Annotated[
    Path | None,
    typer.Option("--matched", metavar="TOML|CSV", help="Reweight to a population: shares, or a table to count."),
]
RunOption = Annotated[
    Path | None, typer.Option("--run", metavar="RUN", help="The bundle's run: in-sample against out-of-fold AUC.")
]
UnlabelledOption = Annotated[bool, typer.Option("--unlabelled", help="Count what is called positive; no labels.")]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="COLUMN=VALUE", help="Of an unlabelled table, only these rows.")
]
TitleOption = Annotated[str, typer.Option("--title", help="Name of the evaluation, for report and model card.")]
KnownOption = Annotated[str, typer.Option("--known", help="What is known of unlabelled images, for the model card.")]
_NEEDS_EXTRA = "evaluation needs the extra packages ({} is missing): pip install 'cxrnode[train]'"


def evaluate(
    images: Annotated[Path, typer.Option("--images", metavar="DIR|ZIP", help="PNG, JPEG or DICOM images.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where everything is written.")],
    labels: LabelsOption = None,
    bundle: BundleOption = None,
    split: Annotated[
        Path | None, typer.Option("--split", metavar="TXT", help="Only the images of this list (test_list.txt).")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option("--boxes", metavar="CSV", help="NIH's BBox_List_2017.csv, for localisation.")
    ] = None,
    ever_ill: EverIllOption = False,
    patient_table: PatientTableOption = None,
    matched: MatchedOption = None,
    run: RunOption = None,
    unlabelled: UnlabelledOption = False,
    only: OnlyOption = None,
    title: TitleOption = "",
    known: KnownOption = "",
    rounds: RoundsOption = 2000,
    seed: SeedOption = 1,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads of the model; 0: one per core.")] = 0,
) -> None:
    """Measure a bundle on images: predictions, metrics with intervals, plots, and a report.

    With --unlabelled no labels are needed: the share of images that is called positive is counted.
    """
    try:
        from modeling.evaluation.evaluate import EvaluationRequest
        from modeling.evaluation.unlabelled import UnlabelledRequest
    except ModuleNotFoundError as error:
        raise ConfigurationError(_NEEDS_EXTRA.format(error.name)) from error

    opened = open_bundle(bundle or default_bundle())
    if unlabelled:
        if split or boxes or ever_ill or patient_table or matched or run:
            raise ConfigurationError(
                "--unlabelled takes none of --split, --boxes, --ever-ill, --patient-table, --matched and --run"
            )
        request = UnlabelledRequest(
            images=images, out=output, table=labels, only=_column_and_value(only), title=title, known=known,
            rounds=rounds, seed=seed,
        )  # fmt: skip
        _evaluate_unlabelled(request, opened, threads)
        return
    if only is not None or known:
        raise ConfigurationError("--only and --known go with --unlabelled")
    _evaluate(
        EvaluationRequest(
            images=images, labels=labels, out=output, split=split, boxes=boxes, ever_ill=ever_ill,
            patient_table=patient_table, matched=matched, run=run, title=title, rounds=rounds, seed=seed,
        ),
        opened,
        threads,
    )  # fmt: skip


def _evaluate(request: "EvaluationRequest", bundle: Bundle, threads: int) -> None:
    from modeling.evaluation.evaluate import REPORT
    from modeling.evaluation.evaluate import evaluate as run

    with _progress() as shown:
        found = run(request, bundle, _ready(bundle, threads), shown, utc_now())
    out.print(_labels_table(found))
    _print_summary(found)
    out.print(f"report: {escape(str(request.out / REPORT))}")


def _evaluate_unlabelled(request: "UnlabelledRequest", bundle: Bundle, threads: int) -> None:
    from modeling.evaluation.evaluate import REPORT
    from modeling.evaluation.unlabelled import evaluate_unlabelled

    with _progress() as shown:
        found = evaluate_unlabelled(request, bundle, _ready(bundle, threads), shown, utc_now())
    first = bundle.manifest.labels[0].name
    table = Table(
        caption=f"share of images called positive for {first} at each operating point; intervals are in the report",
        caption_justify="left",
    )
    for column in ("view", "images", *bundle.manifest.labels[0].operating_points):
        table.add_column(column, justify="left" if column == "view" else "right")
    for name, group in found.groups.items():
        table.add_row(
            name,
            str(group.images),
            *("-" if called is None else f"{called.value:.2f}" for called in group.called[first].values()),
        )
    out.print(table)
    out.print(f"report: {escape(str(request.out / REPORT))}")


@contextmanager
def _progress() -> Iterator["EvaluationProgress"]:
    from modeling.evaluation.evaluate import EvaluationProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
        reading = progress.add_task("reading images", total=None)
        yield EvaluationProgress(
            images=lambda done, total: progress.update(reading, completed=done, total=total),
            stage=lambda name: progress.update(reading, description=name),
        )


def _column_and_value(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise ConfigurationError(f"--only wants COLUMN=VALUE, not {text!r}")
    return column, value


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
    for missing in comparison.not_shared:
        labels = f" and {len(missing.labels)} labels" if missing.labels else ""
        out.print(
            f"left out: {len(missing.images)} images{labels} that {escape(missing.run)} has and another run lacks"
        )
    out.print(f"report: {escape(str(output / REPORT))}")


def _ready(bundle: Bundle, threads: int) -> "ReadyBundle":
    """Return the bundle as evaluation wants it: rendering and the model are the node's own."""
    from modeling.evaluation.reading import Answer, ReadyBundle
    from modeling.training_images import recogniser_of

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
    return ReadyBundle(labels=labels, decode=decode, read=read_all, recognise=recogniser_of(bundle))


def _labels_table(found: "Evaluation") -> Table:
    table = Table(caption="95 % intervals of whole patients; a dash: too few images", caption_justify="left")
    for column in ("label", "positives", "AUC", "view alone", "ECE"):
        table.add_column(column, justify="left" if column == "label" else "right", no_wrap=True)
    for label, result in found.measured.labels.items():
        others = (f"{estimate.value:.3f}" if estimate else "-" for estimate in (result.view_only_auc, result.ece))
        table.add_row(label, str(result.positives), str(result.auc or "-"), *others)
    return table


def _print_summary(found: "Evaluation") -> None:
    measured = found.measured
    mean = measured.mean_of_findings
    if mean.auc is not None and mean.members is not None:
        members = f"{mean.members.mean:.3f} ± {mean.members.sd:.3f}"
        out.print(f"mean AUC of {len(mean.labels)} findings: {mean.auc}; members alone {members}")
    out.print(f"{measured.images} images of {measured.patients} patients read")
    if found.overlap is not None and found.overlap.trained_on:
        out.print(
            f"[bold red]warning:[/] the bundle was trained on {found.overlap.trained_on} of these "
            f"{found.overlap.images} images; every figure is too good"
        )
    if measured.unconfounded is not None and measured.unconfounded.confounded:
        names = ", ".join(measured.unconfounded.confounded)
        out.print(f"without findings confounded with the source ({names}): mean AUC {measured.unconfounded.auc or '-'}")
    kinds = Counter(problem.kind.value for problem in found.problems)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        out.print(f"[yellow]problems, listed in skipped.csv:[/] {listed}")


def _differences_table(comparison: "Comparison") -> Table:
    from modeling.evaluation.report import shown

    table = Table(caption="second minus first; 95 % intervals of whole patients", caption_justify="left")
    for column in ("first", "second", "label", "difference in AUC", "DeLong p"):
        table.add_column(column, justify="right" if column in {"difference in AUC", "DeLong p"} else "left")
    for difference in comparison.differences:
        p_value = "" if difference.delong is None else f"{difference.delong.p_value:.2g}"
        table.add_row(
            escape(difference.first), escape(difference.second), difference.label, shown(difference.bootstrap), p_value
        )
    return table
