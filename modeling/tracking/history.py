"""The log of a run, epoch by epoch: tables and learning curves derived from the records of the checkpoints."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling.drawing import DPI, GREY, STYLE
from modeling.files import write_durably

HISTORY_CSV, HISTORY_JSON, CURVES = "history.csv", "history.json", "learning-curves.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One finished epoch of one fold. Every value is one of JSON's, so that `asdict` and JSON bring it back.

    `fold` is counted from 0, as in the names of the checkpoints, `epoch` from 1; `loss` is the mean over the epoch's
    training steps; `held_out_loss` and the AUCs are None when this epoch was not evaluated or the model has no such
    output, `findings_auc` the mean over the findings; `rate` is the learning rate at the end; `seconds` the epoch's
    duration with its evaluation; `finished_at` ISO 8601 with the offset of UTC.
    """

    fold: int
    epoch: int
    loss: float
    held_out_loss: float | None
    abnormality_auc: float | None
    findings_auc: float | None
    rate: float
    images_per_s: float
    seconds: float
    finished_at: str


COLUMNS = tuple(field.name for field in fields(EpochRecord))


def write_history(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Write the table, the same as JSON, and the curves, each file whole or not at all. `records`: of all folds."""
    # Drawing takes long to import, and whoever only reads a checkpoint needs none of it.

    ordered = sorted(records, key=lambda record: (record.epoch, record.fold))
    write_durably(folder / HISTORY_CSV, as_csv(ordered).encode())
    write_durably(folder / HISTORY_JSON, as_json(ordered).encode())
    write_durably(folder / CURVES, curves_png(ordered))


def as_csv(records: Sequence[EpochRecord]) -> str:
    """Return a table with a header; a value that was not measured is empty, a diverged loss is `nan` or `inf`."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(record) for record in records)
    return text.getvalue()


def as_json(records: Sequence[EpochRecord]) -> str:
    """Return a list of objects; JSON knows no number for a loss that diverged, so it becomes a string."""
    rows = [{name: _for_json(value) for name, value in asdict(record).items()} for record in records]
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def _for_json(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


Series = npt.NDArray[np.float64]
Value = Callable[[EpochRecord], float | None]

_MARKED_EPOCHS = 40
_DARK = "#111111"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a800", "#6a51a3")


def curves_png(records: Sequence[EpochRecord]) -> bytes:
    """Return the curves of all folds as a PNG file."""
    with mpl.rc_context(STYLE):
        file = io.BytesIO()
        curves_figure(records).savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def curves_figure(records: Sequence[EpochRecord]) -> Figure:
    """Return losses, both AUCs and the learning rate over the epochs: a colour for each fold, the mean dark."""
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    losses, abnormality, findings, rate = figure.subplots(2, 2, sharex=True).ravel()
    _lines(losses, records, lambda record: record.loss, dashed=True)
    _lines(losses, records, lambda record: record.held_out_loss)
    losses.set(title="Loss: training dashed, held out solid", ylabel="loss")
    for axes, value, name in (
        (abnormality, lambda record: record.abnormality_auc, "Abnormality"),
        (findings, lambda record: record.findings_auc, "Findings, mean"),
    ):
        means = _lines(axes, records, value)
        axes.set(title=f"{name}: held-out AUC{_best(means)}", ylabel="AUC")
    _lines(rate, records, lambda record: record.rate)
    rate.set(title="Learning rate at the end of the epoch", ylabel="rate")
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes in (findings, rate):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max((record.epoch for record in records), default=1) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
    named = dict(zip(*reversed(losses.get_legend_handles_labels()), strict=True))
    if named:
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=min(11, len(named)))
    return figure


def series(records: Sequence[EpochRecord], value: Value) -> tuple[list[int], Series]:
    """Return the folds, and (folds, epochs) values from epoch 1 on; NaN where there is none."""
    folds = sorted({record.fold for record in records})
    values = np.full((len(folds), max((record.epoch for record in records), default=0)), np.nan)
    for record in records:
        if (known := value(record)) is not None:
            values[folds.index(record.fold), record.epoch - 1] = known
    return folds, values


def mean_of_folds(values: Series) -> Series:
    """Return (epochs,) means, NaN where a fold has no value: a mean over fewer folds is another curve."""
    means: Series = values.mean(axis=0)
    return means


def _lines(axes: Axes, records: Sequence[EpochRecord], value: Value, *, dashed: bool = False) -> Series:
    """Draw each fold and the mean of several, and return the mean."""
    folds, values = series(records, value)
    means = mean_of_folds(values) if folds else np.empty(0)
    style: dict[str, Any] = {"ls": "--" if dashed else "-", "ms": 2.5, "mfc": "white" if dashed else None}
    for fold, row in zip(folds, values, strict=True):
        colour = _COLOURS[fold % len(_COLOURS)]
        # The legend is made of solid lines, which every fold has from the first evaluation on.
        _line(axes, row, color=colour, lw=0.9, alpha=0.75, label=None if dashed else f"fold {fold}", **style)
    if len(folds) > 1:
        _line(axes, means, color=_DARK, lw=1.8, label=None if dashed else "mean of folds", **style)
    if not np.isfinite(values).any():
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=axes.transAxes)
    return means


def _line(axes: Axes, values: Series, **style: Any) -> None:
    """Join the known values across epochs that were not evaluated."""
    known = np.flatnonzero(np.isfinite(values))
    marker = "o" if len(known) <= _MARKED_EPOCHS else None
    axes.plot(known + 1, values[known], marker=marker, **style)


def _best(means: Series) -> str:
    if not np.isfinite(means).any():
        return ""
    best = int(np.nanargmax(means))
    return f", best {means[best]:.3f} at epoch {best + 1}"
