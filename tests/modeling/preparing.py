"""`cxrnode data prepare` on a small release, and what it left in its folder."""

import csv
from dataclasses import replace
from pathlib import Path

from modeling.preparation.prepare import PreparationRequest, Prepared, prepare


def request_of(folder: Path, out: Path, **over: object) -> PreparationRequest:
    request = PreparationRequest(
        images=folder / "images", labels=folder / "Data_Entry_2017.csv", out=out, folds=3, side=64, shard_size=10
    )
    return replace(request, min_positives=0, **over)  # type: ignore[arg-type]


def quietly(what: str, done: int, total: int) -> None:
    pass


def prepared(folder: Path, out: Path, **over: object) -> Prepared:
    return prepare(request_of(folder, out, **over), quietly)


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def problems(out: Path) -> list[tuple[str, str]]:
    with (out / "problems.csv").open(newline="") as file:
        return [(row["problem"], row["subject"]) for row in csv.DictReader(file)]


def problems_of_images(out: Path) -> list[tuple[str, str]]:
    return [problem for problem in problems(out) if problem[0] != "few-positives"]


def found(result: Prepared) -> dict[str, int]:
    """Return the problems of images and rows; so small a release has few positives in some fold."""
    return {kind: number for kind, number in result.problems.items() if kind != "few-positives"}


def content(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "lock"
    }
