"""Names in the training code: each type is defined once, and no variable has a name without a meaning."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEANINGLESS = frozenset({"held", "one", "said", "seen", "looked"})


def trees(package: str) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted((ROOT / package).rglob("*.py"))}


def test_no_class_name_is_defined_twice_in_modeling_and_benchmarks() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for package in ("modeling", "benchmarks"):
        for path, tree in trees(package).items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(places) > 100
    assert {name: lines for name, lines in places.items() if len(lines) > 1} == {}


@pytest.mark.parametrize("package", ["modeling", "benchmarks"])
def test_no_variable_has_a_name_without_a_meaning(package: str) -> None:
    found = []
    for path, tree in trees(package).items():
        for node in ast.walk(tree):
            stored = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            name = node.arg if isinstance(node, ast.arg) else stored
            if name in MEANINGLESS:
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {name}")
    assert found == []
