"""The dashboard, the alerts and their page speak of metrics and events that there are, and of every one."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dicomnode.bundle.reader import open_bundle
from dicomnode.certificates import ServedCertificate
from dicomnode.monitoring.health import Running
from dicomnode.monitoring.metrics import Metrics
from dicomnode.monitoring.monitored_node import MonitoredNode
from dicomnode.settings.node import read_settings
from tests.conftest import ROOT
from tests.support.bundles import make_bundle
from tests.support.processes import require
from tests.support.stores import at, open_store

DOCS = ROOT / "docs"
PAGE = (DOCS / "monitoring.md").read_text(encoding="utf-8")
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DOCS / "monitoring" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((DOCS / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
_METRIC = re.compile(r"\b(?:cxrnode|process)_[a-z_]+")
_EVENT = re.compile(r"[a-z]+(?:-[a-z]+)*")
_SUFFIXES = ("_bucket", "_count", "_sum")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every metric of a node by name, with its type: those of an empty store with one destination."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "node.toml").write_text('[[delivery.destinations]]\nname = "P"\nae_title = "P"\nhost = "h"\nport = 104\n')
    settings = read_settings(folder / "node.toml", {"store": {"path": folder / "store"}})
    running = Running(
        threads=lambda: {"worker": True},
        listening=lambda: True,
        associations=lambda: 0,
        accepted=lambda: 0,
        refused=lambda: {("event", "reason"): 1},
        circuit_breakers_open=lambda: {"P": False},
        certificates=lambda: {"page": ServedCertificate(expires_at=at(0), is_current=True)},
    )
    with open_store(folder / "store") as store:
        monitored = MonitoredNode(
            settings=settings,
            store=store,
            bundle=open_bundle(make_bundle(folder / "bundle")),
            operating_point="youden",
            running=running,
            clock=lambda: at(0),
        )
        text = Metrics(monitored).text().decode()
    return {family.name: family.type for family in text_string_to_metric_families(text)}


def names(family: str, kind: str) -> set[str]:
    """Return what a query may call a metric."""
    if kind == "counter":
        return {f"{family}_total"}
    return {f"{family}{suffix}" for suffix in _SUFFIXES} if kind == "histogram" else {family}


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (entry["query"]["query"] for entry in DASHBOARD["templating"]["list"] if entry["type"] == "query")


def test_every_metric_of_the_dashboard_and_the_alerts_is_one(families: dict[str, str]) -> None:
    known = {name for family, kind in families.items() for name in names(family, kind)}
    asked = {name for expression in expressions() for name in _METRIC.findall(expression)}
    assert len(asked) > 20
    assert asked <= known


def test_every_metric_is_explained_and_every_explained_one_is_there(families: dict[str, str]) -> None:
    explained = set(re.findall(r"^\| `((?:cxrnode|process)_[a-z_]+)` \|", PAGE, re.MULTILINE))
    own = {f"{name}_total" if kind == "counter" else name for name, kind in families.items() if name.startswith("cxr")}
    assert explained - {"process_resident_memory_bytes"} == own
    assert "process_resident_memory_bytes" in families


def test_every_alert_has_a_cause_to_act_and_something_to_do() -> None:
    assert {rule["alert"] for rule in RULES} == set(re.findall(r"^\| `(Cxrnode\w+)` \|", PAGE, re.MULTILINE))
    for rule in RULES:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.peer
def test_promtool_accepts_the_rules_where_there_is_one() -> None:
    promtool = require("promtool")
    told = subprocess.run(
        [promtool, "check", "rules", str(DOCS / "monitoring" / "alerts.yml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_panels_neither_overlap_nor_lack_a_title() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"]
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


# Events


def events() -> set[str]:
    """Return every event that the node's code gives to its log."""
    return {
        name
        for path in (ROOT / "dicomnode").rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        for name in _named(call, function)
    }


def _named(call: ast.Call, within: ast.AST) -> Iterator[str]:
    called = ast.unparse(call.func)
    if called.endswith("efusals.note"):
        argument: ast.expr = call.args[0]
    elif re.fullmatch(r"log\.(debug|info|warning|error|exception|critical|log)", called):
        argument = call.args[called == "log.log"]
    else:
        return
    if isinstance(argument, ast.Name):
        given = [
            node.value
            for node in ast.walk(within)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == argument.id
        ]
    else:
        given = [argument]
    for expression in given:
        yield from (
            str(part.value)
            for part in ([expression.body, expression.orelse] if isinstance(expression, ast.IfExp) else [expression])
            if isinstance(part, ast.Constant)
        )


def test_every_event_is_explained_and_every_explained_one_is_there() -> None:
    found = events()
    assert {"study-failed", "study-deferred", "association-rejected", "certificate-expires-soon"} <= found
    assert all(_EVENT.fullmatch(name) for name in found)
    assert found == set(re.findall(r"^\| `([a-z-]+)` \| (?:debug|info|warning|error|critical) \|", PAGE, re.MULTILINE))
