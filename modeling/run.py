"""A run's folder: its description, its data, and a checkpoint of each fold's last finished epoch."""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from dicomnode.bundle.reader import file_sha256
from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.frame import FloatArray
from modeling.config import ApplicationModel, LiteModel, Sources, TrainingConfig
from modeling.devices import Spread, alone
from modeling.nih import LABELS, Radiographs
from modeling.optimise import State
from modeling.tracking.history import EpochRecord

RUN = "run.json"
OUT_OF_FOLD = "out-of-fold.npz"
FINAL = "final"
_ALONE = alone()
_NOT_TRAINING = frozenset({"bundle", "confounding", "gate", "tracking"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A fold after its last finished epoch: the records of all its epochs, and the state training goes on from.

    With `is_final` the state is the weights alone that the fold is judged and served by: enough to export, a fifth of
    the size, and no training goes on from it.
    """

    records: tuple[EpochRecord, ...]
    state: State
    is_final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training run: its configuration, images and folds.

    `folds`: (N,) each image's fold; `folder` holds the checkpoints.
    """

    config: TrainingConfig
    radiographs: Radiographs
    folds: npt.NDArray[np.int64]
    sources: Sources
    folder: Path

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the model's outputs."""
        return LABELS[:1] if self.config.model.outputs == "abnormality" else LABELS

    @property
    def begins_at_random(self) -> bool:
        """Whether the network begins with random weights."""
        model = self.config.model
        pretrained = isinstance(model, ApplicationModel) and model.weights == "imagenet"
        return not pretrained and self.sources.warm_start is None

    @property
    def labels(self) -> FloatArray:
        """(N, outputs) labels of those outputs, NaN where not known."""
        return self.radiographs.labels[:, : len(self.outputs)]

    def claim_folder(self, spread: Spread = _ALONE) -> None:
        """Write the run's description into its folder, or refuse a folder that belongs to another run.

        All processes of the run must call it; the first writes.

        Raises: ConfigurationError, also when the processes do not see the same folder.
        """
        model, warm_start = self.config.model, self.sources.warm_start
        if warm_start is not None and not isinstance(model, LiteModel):
            raise ConfigurationError(
                f"a warm start is for efficientnet-lite0 and -lite2; {model.backbone} starts from its weights"
            )
        if isinstance(model, LiteModel) and model.frozen_blocks and warm_start is None:
            raise ConfigurationError("model.frozen_blocks needs a warm start: random blocks must not stay frozen")
        description = {
            "identity": self._identity(),
            # The address of a tracking server may hold a password.
            "config": self.config.model_dump(mode="json", exclude={"tracking"}),
            "sources": {name: str(path.resolve()) if path else None for name, path in asdict(self.sources).items()},
        }
        path = self.folder / RUN
        if path.exists() and not self._is_described_in(self.folder):
            raise ConfigurationError(f"{self.folder} holds a run of another configuration or data; choose another one")
        if spread.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(path, (json.dumps(description, indent=2) + "\n").encode())
        spread.meet()
        if not spread.agree(path.exists):
            raise ConfigurationError(f"not every host sees {self.folder}; a run needs a folder that all of them share")

    def checkpoint(self, fold: int, *, best: bool = False) -> Path:
        """Return where the fold's last finished epoch is stored, or its best."""
        return _checkpoint(self.folder, fold, best=best)

    def output_layer(self, fold: int) -> Path:
        """Return where the fold's last layer is stored if it was fitted again after training."""
        return self.folder / f"output-{fold}.npz"

    def records(self, fold: int) -> tuple[EpochRecord, ...]:
        """Return the records of the fold's finished epochs."""
        return _records(self.checkpoint(fold))

    def _is_described_in(self, folder: Path) -> bool:
        """Tell whether the folder belongs to this run; settings newer than the folder count as their defaults."""
        former, (config, _) = _read_description(folder / RUN)["identity"], described(folder)
        own = self._identity()
        return own == {name: former.get(name) for name in own} and _recipe(config) == _recipe(self.config)

    def _identity(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the folder besides its recipe."""
        images = hashlib.sha256("\n".join(self.radiographs.names).encode())
        images.update(self.folds.astype("<i8").tobytes())
        images.update(self.labels.astype("<f4").tobytes())
        start = self.sources.warm_start
        return {"images": images.hexdigest(), "warm_start": file_sha256(start) if start else None}


def _recipe(config: TrainingConfig) -> dict[str, Any]:
    """Return the part of a configuration that changes the training."""
    return config.model_dump(mode="json", exclude=set(_NOT_TRAINING))


def described(folder: Path) -> tuple[TrainingConfig, Sources]:
    """Return the configuration and the sources of the run in the folder.

    Raises: ConfigurationError when it holds no run, or one that another version wrote.
    """
    description = _read_description(folder / RUN)
    try:
        paths = {name: Path(path) for name, path in description["sources"].items() if path}
        return TrainingConfig.model_validate(description["config"]), Sources(**paths)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ConfigurationError(f"{folder / RUN} does not describe a run that this version can read") from error


def fold_records(folder: Path, folds: int) -> tuple[EpochRecord, ...]:
    """Return the finished epochs of all folds of the run in the folder."""
    return tuple(record for fold in range(folds) for record in _records(_checkpoint(folder, fold)))


def write_checkpoint(path: Path, records: Sequence[EpochRecord], state: State, *, is_final: bool = False) -> None:
    """Write the whole file, then move it into place: a kill leaves either the old checkpoint or the new one."""
    history = np.array(json.dumps([asdict(record) for record in records]))
    final = {FINAL: np.ones(())} if is_final else {}
    write_arrays(path, {"history": history, **final, **{f"v{index}": value for index, value in enumerate(state)}})


def read_checkpoint(path: Path, *, states: bool = True) -> Checkpoint:
    """Read a checkpoint, or only its records.

    Raises: ConfigurationError when it is damaged.
    """
    arrays = read_arrays(path, only=None if states else ("history",))
    try:
        records = tuple(EpochRecord(**record) for record in json.loads(str(arrays.pop("history"))))
        is_final = arrays.pop(FINAL, None) is not None
        state = [arrays[f"v{index}"] for index in range(len(arrays))]
        return Checkpoint(records=records, state=state, is_final=is_final)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path} is damaged; remove it to train the fold again") from error


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write named arrays, complete or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_arrays(path: Path, *, only: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read named arrays.

    Raises: ConfigurationError when the file is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in (arrays.files if only is None else only)}
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path} is missing: the fold has not been trained") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path} is damaged; remove it to train the fold again") from error


def _checkpoint(folder: Path, fold: int, *, best: bool = False) -> Path:
    return folder / f"fold-{fold}{'.best' if best else ''}.npz"


def _records(checkpoint: Path) -> tuple[EpochRecord, ...]:
    return read_checkpoint(checkpoint, states=False).records if checkpoint.exists() else ()


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path.parent} holds no run: {RUN} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is damaged") from error
    if not isinstance(description, dict) or "identity" not in description:
        raise ConfigurationError(f"{path} is damaged")
    return description


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
