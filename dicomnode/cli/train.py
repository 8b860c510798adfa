"""`cxrnode train`: the one door to the training code, opened only when asked for."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli.terminal import out
from dicomnode.domain.errors import ConfigurationError
from dicomnode.settings import LogSettings
from dicomnode.telemetry import start_logging


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
) -> None:
    """Train the ensemble fold by fold, calibrate it out of fold, and export the bundle to DIR/bundle."""
    start_logging(LogSettings(format="text"))
    logging.getLogger("modeling").setLevel(logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets at length
    try:
        from modeling import commands

        bundle = commands.train(config, images, labels, output, warm_start=warm_start, gate_images=gate_images)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"training needs the extra packages ({error.name} is missing): pip install 'cxrnode[train]'"
        ) from error
    out.print(f"bundle written to {bundle}")
