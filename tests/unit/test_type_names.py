"""A type name stands for one thing: whoever searches for it finds one class."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT


def classes_in(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        yield from ((node.name, file) for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def repeated_names(folder: Path) -> dict[str, list[str]]:
    """Return the class names that are defined more than once, private ones too, with the files that define them."""
    files = defaultdict(list)
    for name, file in classes_in(folder):
        files[name].append(str(file.relative_to(folder)))
    return {name: where for name, where in files.items() if len(where) > 1}


def test_no_class_name_is_defined_twice() -> None:
    assert repeated_names(ROOT / "dicomnode") == {}


def test_a_class_that_is_defined_twice_is_found_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("class Job: pass\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "two.py").write_text("def f():\n    class Job: pass\n\nclass _Other: pass\n")
    assert repeated_names(tmp_path) == {"Job": [str(Path("inner") / "two.py"), "one.py"]}
