"""Joins the archives that the shipped model was trained on: `python -m benchmarks.reference_images OUT ARCHIVE...`.

Each archive holds images and a `manifest.csv`, as those of the team's data folder. Rows of the source `cadlab`, whose
images are turned in part, and rows that an earlier archive has already (`already_have` 1) are left out.
"""

import csv
import io
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

MANIFEST, LEFT_OUT = "manifest.csv", "cadlab"
COLUMNS = ("image", "px", "source", "labels", "view", "patient", "age", "sex")


def join(out: Path, archives: Sequence[Path]) -> int:
    """Write one archive of all wanted images, as they are, with one manifest, and return how many there are."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    count = 0
    with zipfile.ZipFile(out, "w") as joined:
        for archive in archives:
            with zipfile.ZipFile(archive) as opened:
                for row in _wanted(opened):
                    name = f"images/{Path(row['image']).stem}.jpg"
                    joined.writestr(name, opened.read(name))
                    table.writerow(row)
                    count += 1
        joined.writestr(MANIFEST, text.getvalue())
    return count


def _wanted(archive: zipfile.ZipFile) -> Iterator[dict[str, str]]:
    rows = csv.DictReader(io.StringIO(archive.read(MANIFEST).decode("utf-8")))
    yield from (row for row in rows if row["source"] != LEFT_OUT and row.get("already_have") != "1")


if __name__ == "__main__":
    target, *given = (Path(argument) for argument in sys.argv[1:])
    print(f"{join(target, given)} images in {target}")
