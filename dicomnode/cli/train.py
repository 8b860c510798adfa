"""`cxrnode train` and `cxrnode export`: the doors to the training code, opened only when asked for."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.bundle.reader import CARD
from dicomnode.cli.terminal import out
from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings.node import LogSettings
from dicomnode.telemetry import start_logging

EvaluationOption = Annotated[
    list[Path] | None,
    typer.Option("--evaluation", metavar="DIR", help="A folder of `cxrnode evaluate`, for the card (repeatable)."),
]


def train(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="A recipe of conf/train.")],
    images: Annotated[Path, typer.Option("--images", metavar="ZIP|DIR", help="Images, or a prepared folder.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The run; an unfinished one goes on.")],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="CSV", help="NIH's table; else manifest.csv beside the images."),
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option("--warm-start", metavar="NPZ", help="EfficientNet-Lite0 weights (batch norm folded)."),
    ] = None,
    gate_images: Annotated[
        Path | None,
        typer.Option("--gate-images", metavar="ZIP", help="Images of known kind to measure the pixel gate on."),
    ] = None,
    tpu: Annotated[bool, typer.Option("--tpu", help="Train on TPUs, or stop if there are none.")] = False,
    fold: Annotated[
        list[int] | None,
        typer.Option("--fold", metavar="K", help="Train only this fold, counted from 0 (repeatable)."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe (repeatable)."),
    ] = None,
) -> None:
    """Train the ensemble fold by fold, calibrate it out of fold, and export the bundle to DIR/bundle.

    Without --tpu a GPU is used where JAX sees one, and TensorFlow on the CPU otherwise.
    """
    with _training_code():
        from modeling import commands
        from modeling.config import Sources, read_config

        recipe = read_config(config, changes or ())
        sources = Sources(images=images, labels=labels, warm_start=warm_start, gate_images=gate_images)
        bundle = commands.train(recipe, sources, output, tpu=tpu, folds=fold)
    out.print(f"bundle written to {bundle}" if bundle else f"trained into {output}; no bundle was written yet")


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    bundle: Annotated[Path | None, typer.Option("--out", "-o", metavar="BUNDLE", help="The folder to write.")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="ZIP|DIR", help="Where the run's images are now, if moved.")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", metavar="RUN", help="A run to show beside it in the model card (repeatable)."),
    ] = None,
    evaluation: EvaluationOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only try what export needs, also of a new run.")] = False,
    companion: Annotated[
        Path | None,
        typer.Option("--with", metavar="BUNDLE", help="A bundle whose members read each image beside the run's."),
    ] = None,
    out_of_fold: Annotated[
        Path | None, typer.Option(metavar="NPZ", help="That bundle's out-of-fold.npz, from the folder of its run.")
    ] = None,
    members: Annotated[
        tuple[int, int], typer.Option(metavar="OWN OTHER", help="With --with: how many members of each.")
    ] = (3, 2),
) -> None:
    """Write the bundle of a finished run: ONNX graph, calibration, operating points, golden vectors, model card."""
    with _training_code():
        from modeling import commands

        if check:
            commands.check_export(run, images)
        elif bundle is None:
            raise ConfigurationError("export needs --out BUNDLE, or --check")
        elif (companion is None) != (out_of_fold is None):
            raise ConfigurationError("--with needs --out-of-fold, and the reverse")
        elif companion is not None and out_of_fold is not None:
            if beside or evaluation:
                raise ConfigurationError("--with takes no --beside or --evaluation: use `cxrnode card` afterwards")
            joined = commands.joined_with(companion, out_of_fold, members)
            commands.export_joined(run, bundle, joined, images=images)
        else:
            commands.export(run, bundle, images=images, beside=beside or (), evaluations=evaluation or ())
    out.print("this run can be exported" if check else f"bundle written to {bundle}")


def card(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle whose model card is written.")],
    evaluation: EvaluationOption = None,
) -> None:
    """Write the results of evaluations into a bundle's model card, in place of those that stand there."""
    with _training_code():
        from modeling import commands

        commands.update_card(bundle, evaluation or ())
    out.print(f"model card written: {bundle / CARD}")


@contextmanager
def _training_code() -> Iterator[None]:
    """Log as a program for people, and say how to install what training needs."""
    start_logging(LogSettings(format="text"))
    logging.getLogger("modeling").setLevel(logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets at length
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"training needs the extra packages ({error.name} is missing): pip install 'cxrnode[train]'"
        ) from error
