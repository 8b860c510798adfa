"""What the benchmarks' table says of a measurement, and what of a former run stays."""

from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import machine, table
from benchmarks.bench import Bench
from benchmarks.table import Goal, Measured, Row, Section


def rates(*values: float) -> Measured:
    return Measured(values, "MB/s")


def test_a_ratio_is_the_median_of_the_rounds_ratios_so_a_slow_round_slows_both() -> None:
    row = Row(what="receive", ours=rates(100, 10, 90), peer="Orthanc", theirs=rates(50, 5, 30))
    assert row.ratio is not None
    assert row.ratio.values == (2.0, 2.0, 3.0)
    assert row.ratio.median == 2.0


@pytest.mark.parametrize(
    ("goal", "verdict"),
    [
        (Goal(at_least=2.0), "yes"),
        (Goal(at_least=2.5), "**no**"),
        (Goal(at_most=2.0), "yes"),
        (Goal(at_most=1.2), "**no**"),
        (None, ""),
    ],
)
def test_a_goal_that_is_missed_is_said_to_be_missed(goal: Goal | None, verdict: str) -> None:
    row = Row(what="receive", ours=rates(100), peer="Orthanc", theirs=rates(50), goal=goal)
    assert row.verdict == verdict


def test_without_a_peer_the_goal_is_held_against_our_own_figure() -> None:
    page = Measured((12.0,), "ms")
    assert Row(what="page", ours=page, goal=Goal(at_most=50, unit="ms")).verdict == "yes"
    assert Row(what="page", ours=page, goal=Goal(at_most=10, unit="ms")).verdict == "**no**"


def test_a_peer_that_is_not_installed_meets_no_goal_and_the_row_says_so() -> None:
    row = Row(
        what="receive", ours=rates(100), peer="Orthanc", goal=Goal(at_least=2.5), absent="Orthanc is not installed"
    )
    assert row.verdict == ""
    assert "Orthanc is not installed" in row.cells()[2]


def test_contenders_take_turns_and_each_round_begins_with_another(tmp_path: Path) -> None:
    order: list[str] = []

    def contender(name: str, value: float) -> float:
        order.append(name)
        return value

    found = Bench(folder=tmp_path, rounds=2).interleaved(
        {"ours": lambda: contender("ours", 1.0), "theirs": lambda: contender("theirs", 2.0)}, "s"
    )
    assert order == ["ours", "theirs", "theirs", "ours"]
    assert found["theirs"] == Measured((2.0, 2.0), "s")


def test_a_benchmark_that_was_not_run_keeps_its_section_and_its_date(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    row = Row(what="all", ours=rates(1.0))
    first = Section(name="receive", about="Receiving.", rows=(row,), notes=["By a fast sender."])
    table.write({"receive": first.markdown("in January")}, ["receive", "send"], path)
    table.write({"send": Section(name="send", about="Sending.").markdown("in May")}, ["receive", "send"], path)
    held = table.read(path)
    assert list(held) == ["receive", "send"]
    assert "in January" in held["receive"]
    assert "By a fast sender." in held["receive"]
    assert "in May" in held["send"]
    again = Section(name="receive", about="Receiving.").markdown("in June")
    table.write({"receive": again}, ["receive", "send"], path)
    assert "January" not in path.read_text()
    assert "in May" in path.read_text()


def test_every_benchmark_exists_says_what_it_is_and_stands_in_the_order_of_the_results() -> None:
    folder = Path(command.__file__).parent
    for name in command.BENCHMARKS:
        source = (folder / f"{name}.py").read_text()
        assert source.startswith('"""')
        assert "def measure(bench: Bench)" in source


def test_the_machine_is_named_with_its_cores_memory_and_versions() -> None:
    said = machine.facts()
    for part in ("cores", "GiB", "load", "cxrnode", "onnxruntime", "pynetdicom"):
        assert part in said
