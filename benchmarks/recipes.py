"""The recipes of conf/train on the same patients and the same budget of processor time.

Each recipe trains one network, whose fold 0 is held out, for as many images as fit into the budget at the rate
measured first; its schedule is squeezed into them. What differs from the recipe as written: the images are reduced to
128 px before anything else (their source is confounded with the labels), single precision, random weights where
ImageNet's cannot be fetched, no early stop, and no batch larger than a machine of 24 GB can train on.

    python benchmarks/recipes.py --images nih-train_val.zip --out runs/recipes --minutes 6 [--warm-start NPZ] [NAME ...]

`cxrnode export RUN --out BUNDLE --beside runs/recipes/NAME ...` then puts the table into the model card.
"""

import argparse
import json
import logging
import os
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from modeling import commands
from modeling.config import ApplicationModel, LiteModel, RampSchedule, Sources, TrainingConfig, read_config

log = logging.getLogger("recipes")

RECIPES = Path(__file__).parents[1] / "conf" / "train"
OURS = "lite0-reference"
LEFT_OUT = frozenset({"smoke", "nih-b2-256", OURS})
SOURCE_SIDE = 128
FOLDS, SEED, HELD_OUT = 10, 20260, 0
EPOCHS = 5
TRIAL_IMAGES = 256
BATCHES_FOR_24_GB = {"tang-binary": 16}
"""128 images of 256 px through EfficientNet-B2 take more than 24 GB to train on; the rate stays (Adam)."""
FROM_NOTHING = "-from-nothing"
"""Our recipe without its warm start, since the other recipes have none here."""


def main() -> None:
    arguments = parsed()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    written = sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem not in LEFT_OUT)
    for name in arguments.names or (OURS, OURS + FROM_NOTHING, *written):
        log.info("recipe %s", name)
        train_within_budget(name, arguments)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes; all that fit one machine by default")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="processor minutes of training for each recipe")
    parser.add_argument("--warm-start", type=Path)
    return parser.parse_args()


def train_within_budget(name: str, arguments: argparse.Namespace) -> None:
    """Train fold 0 of one recipe for as many images as the budget allows; an interrupted run is continued."""
    config = comparable(name)
    sources = Sources(images=arguments.images, warm_start=arguments.warm_start if warms(name, config) else None)
    out: Path = arguments.out / name
    out.mkdir(parents=True, exist_ok=True)
    budget = out / "budget.json"
    if not budget.exists():
        seconds = seconds_per_image(config, sources)
        budget.write_text(json.dumps({"cpu_s_per_image": seconds, "images": round(60 * arguments.minutes / seconds)}))
    spent = json.loads(budget.read_text())
    log.info("%s: %.3f processor seconds an image, %d images", name, spent["cpu_s_per_image"], spent["images"])
    commands.train(squeezed(config, spent["images"]), sources, out, folds=[HELD_OUT])


def warms(name: str, config: TrainingConfig) -> bool:
    """Tell whether a recipe's first weights are available here; the others begin with random weights."""
    return isinstance(config.model, LiteModel) and not name.endswith(FROM_NOTHING)


def comparable(name: str) -> TrainingConfig:
    """Return the recipe with what all runs share, and with random weights where ImageNet's are not at hand."""
    config = read_config(RECIPES / f"{name.removesuffix(FROM_NOTHING)}.toml")
    model: dict[str, object] = {}
    if isinstance(config.model, ApplicationModel):
        model = {"weights": "random", "trainable_fraction": 1.0}
    elif name.endswith(FROM_NOTHING):
        model = {"frozen_blocks": 0}
    batch_size = BATCHES_FOR_24_GB.get(name, config.train.batch_size)
    train = {"batch_size": batch_size, "folds": FOLDS, "seed": SEED, "precision": "float32", "stop_patience": None}
    return changed(
        config,
        bundle={"name": name},
        input={"source_side": SOURCE_SIDE},
        model=model,
        train=train,
        tracking={"mlflow": False},
    )


def squeezed(config: TrainingConfig, images: int) -> TrainingConfig:
    """Return the recipe with its epochs, and what its schedule counts in epochs, cut to so many images in all."""
    epochs = min(config.train.epochs, EPOCHS)
    share = epochs / config.train.epochs
    schedule: dict[str, object] = {}
    if isinstance(config.schedule, RampSchedule):
        ramp = config.schedule
        schedule = {"rise_epochs": round(ramp.rise_epochs * share), "hold_epochs": round(ramp.hold_epochs * share)}
        schedule["decay"] = ramp.decay ** (1 / share)
    per_epoch = max(images // epochs, config.train.batch_size)
    return changed(
        config, schedule=schedule, train={"epochs": epochs, "epoch_images": per_epoch, "evaluate_every": epochs}
    )


def changed(config: TrainingConfig, **sections: dict[str, object]) -> TrainingConfig:
    """Return the configuration with some keys of some sections replaced, checked again."""
    sections_as_written = config.model_dump()
    return TrainingConfig.model_validate(
        sections_as_written | {name: sections_as_written[name] | keys for name, keys in sections.items()}
    )


def seconds_per_image(config: TrainingConfig, sources: Sources) -> float:
    """Return the processor time, of all cores together, of one image: its frozen layers and its part of a step."""
    from modeling.augment import network_inputs
    from modeling.devices import alone
    from modeling.feeding import EpochBatches, Share
    from modeling.losses import targets
    from modeling.network import build_network, fold_frequency
    from modeling.run import Run

    radiographs, folds = commands.training_images(sources.images, sources.labels, config)
    run = Run(config=config, radiographs=radiographs, folds=folds, sources=sources, folder=Path())
    network, size = build_network(run, alone()), config.train.batch_size
    steps = max(1, TRIAL_IMAGES // size)
    batches = EpochBatches(
        np.arange(steps * size),
        steps=steps,
        batch_size=size,
        read_inputs=lambda rows: network.features(network_inputs(run.radiographs.pixels[rows], config.input.side)),
        labels=run.labels,
        make_targets=lambda labels: targets(labels, fold_frequency(run, HELD_OUT), config.loss),
        mixup=0.0,
        seed=(0,),
        share=Share(index=0, count=1),
    )
    network.head.fit(batches, shuffle=False, verbose=0)
    began = time.process_time()
    network.head.fit(batches, shuffle=False, verbose=0)
    return (time.process_time() - began) / (steps * size)


if __name__ == "__main__":
    main()
