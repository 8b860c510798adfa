"""A small release as NIH publishes one: images, a table, official lists; synthetic, with every label."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from modeling.preparation.records import FINDINGS

HEADER = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"]
HEADER += ["View Position"]


def make_release(folder: Path, *, patients: int = 60, images_each: int = 2, side: int = 72) -> Path:
    """Write `images/`, `Data_Entry_2017.csv` and the two lists, and return the folder.

    Every fourth image has no finding; the last fifth of the patients are the official test.
    """
    random = np.random.default_rng(7)
    (folder / "images").mkdir(parents=True)
    rows, lists = [], {"train_val": [], "test": []}
    number = 0
    for patient in range(1, patients + 1):
        for follow_up in range(images_each):
            name = f"{patient:08d}_{follow_up:03d}.png"
            pixels = random.integers(0, 256, size=(side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name)
            finding = "No Finding" if number % 4 == 0 else FINDINGS[number % 14]
            if number % 5 == 1:
                finding = f"{FINDINGS[0]}|{FINDINGS[4]}"
            rows.append((name, finding, follow_up, patient, 20 + patient, "FM"[patient % 2], ("PA", "AP")[number % 2]))
            lists["test" if patient > patients * 4 // 5 else "train_val"].append(name)
            number += 1
    write_table(folder / "Data_Entry_2017.csv", rows)
    for side_name, names in lists.items():
        (folder / f"{side_name}_list.txt").write_text("\n".join(names) + "\n")
    return folder


def write_table(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(rows)


def table_rows(path: Path) -> list[tuple[object, ...]]:
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]
