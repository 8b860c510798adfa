"""The log of a run, epoch by epoch: tables and curves that are derived, whole, from the records of the checkpoints."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from modeling.preparation.shards import write_durably

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
    from modeling.tracking.curves import curves_png

    ordered = sorted(records, key=lambda record: (record.epoch, record.fold))
    write_durably(folder / HISTORY_CSV, as_csv(ordered).encode())
    write_durably(folder / HISTORY_JSON, as_json(ordered).encode())
    write_durably(folder / CURVES, curves_png(ordered))


def as_csv(records: Sequence[EpochRecord]) -> str:
    """Return a table with a header; what was not measured is empty, a loss that diverged `nan` or `inf`."""
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
