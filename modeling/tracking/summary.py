"""What was trained, as text: the layers, their parameters, and where it ran."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import keras

from modeling.preparation.shards import write_durably

SUMMARY = "model.txt"
_COLUMNS = ("  layer", "type", "output", "parameters", "trained")


def write_summary(folder: Path, *, trunk: keras.Model | None, head: keras.Model, facts: Mapping[str, str]) -> None:
    """Write `model.txt`. `trunk`: the part no fold trains, if any; `facts`: backend, devices, precision."""
    write_durably(folder / SUMMARY, summary(trunk, head, facts).encode())


def summary(trunk: keras.Model | None, head: keras.Model, facts: Mapping[str, str]) -> str:
    """Return the facts, the sizes, and a table of every layer."""
    models = {"trunk": trunk, "head": head} if trunk is not None else {"model": head}
    trainable = _parameters(head.trainable_variables)
    every = sum(_parameters(model.variables) for model in models.values())
    shapes = {"input": _shape((trunk or head).input_shape), "output": _shape(head.output_shape)}
    if trunk is not None:
        shapes["between trunk and head"] = _shape(trunk.output_shape)
    sizes = {
        "parameters": f"{every:,}",
        "trainable": f"{trainable:,}",
        "not trained": f"{every - trainable:,} (frozen layers, statistics of batch normalisation)",
    }
    lines = [f"{name}: {value}" for name, value in (shapes | sizes | dict(facts)).items()]
    for name, model in models.items():
        frozen = ", the same for every fold, never trained" if model is trunk else ""
        lines += ["", f"{name.capitalize()}{frozen}", *_table(model, learns=model is head)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _table(model: keras.Model, *, learns: bool) -> list[str]:
    """Return a line for each layer. Keras' own table is as wide as the terminal, and loses what does not fit."""
    rows = [_COLUMNS, *_rows(model, learns=learns)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)) for row in rows]


def _rows(model: keras.Model, *, learns: bool, indent: str = "  ") -> Iterator[tuple[str, ...]]:
    for layer in model.layers:
        trained = "" if not layer.variables else "yes" if learns and layer.trainable_variables else "no"
        shapes = ", ".join(_shape(output.shape) for output in keras.tree.flatten(layer.output))
        count = f"{_parameters(layer.variables):,}" if layer.variables else ""
        yield indent + layer.name, type(layer).__name__, shapes, count, trained
        if isinstance(layer, keras.Model):
            yield from _rows(layer, learns=learns, indent=indent + "  ")


def _parameters(variables: list[keras.Variable]) -> int:
    return sum(int(keras.ops.size(variable)) for variable in variables)


def _shape(shape: tuple[int | None, ...]) -> str:
    return " x ".join("batch" if side is None else str(side) for side in shape)
