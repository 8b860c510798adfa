"""`cxrnode train`: the one door to the training code, opened only when asked for."""

from pathlib import Path
from typing import Annotated

import typer

from dicomnode.domain.errors import ConfigurationError


def train(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="A recipe of conf/train.")],
    images: Annotated[
        Path, typer.Option("--images", metavar="ZIP", help="NIH ChestX-ray14 images with manifest.csv, as a zip.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the run; an unfinished run goes on.")],
) -> None:
    """Train the ensemble fold by fold, calibrate it out of fold, and export the bundle to DIR/bundle."""
    try:
        from modeling import commands
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"training needs the extra packages ({error.name} is missing): pip install 'cxrnode[train]'"
        ) from error
    commands.train(config=config, images=images, out=out)
