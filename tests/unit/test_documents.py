"""Every document: its links lead somewhere, its commands are commands, its configurations are read, its Python runs."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import typer
import yaml

from dicomnode.cli.main import app
from dicomnode.settings.node import Settings, read_settings
from tests.conftest import ROOT
from tests.support.documents import blocks

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), ROOT / "models" / "reference" / "MODEL_CARD.md"]
)
TEXTS = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in DOCUMENTS}
GUIDES = [name for name in TEXTS if name not in {"CHANGELOG.md", "CONFORMANCE.md"}]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
COMMANDS = sorted(
    {
        (name, line.split("  #")[0].strip())
        for name in GUIDES
        for block in blocks("sh", TEXTS[name])
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("cxrnode ")
    }
)
CONFIGURATIONS = [(name, block) for name in GUIDES if "training" not in name for block in blocks("toml", TEXTS[name])]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of headings."""
    prose = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_links_lead_to_files_and_headings(name: str) -> None:
    for target, anchor in LINK.findall(TEXTS[name]):
        file = (ROOT / name).parent / target if target else ROOT / name
        assert file.exists(), f"{name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{name}: {target}#{anchor}"


def test_every_document_is_in_the_index() -> None:
    linked = {target for target, _ in LINK.findall(TEXTS["docs/README.md"])}
    assert {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked
    assert "docs/README.md" in {target for target, _ in LINK.findall(TEXTS["README.md"])}


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_every_command_is_one(name: str, line: str) -> None:
    _, *words = shlex.split(line)
    if words[0].startswith("--"):
        assert words[0] in {"--install-completion", "--show-completion", "--help"}
        return
    command: click.Command = typer.main.get_group(app)
    context = click.Context(command)
    while isinstance(command, click.Group):
        shown, found, words = command.resolve_command(context, words)
        assert found is not None, shown
        command, context = found, click.Context(found, parent=context, info_name=shown)
    command.make_context(context.info_name, words, parent=context.parent, resilient_parsing=False)


def test_the_readme_shows_the_page_and_a_heatmap() -> None:
    shown = re.findall(r"!\[[^\]]{10,}\]\(([^)]+)\)", TEXTS["README.md"])
    assert {"docs/images/page.png", "docs/images/heatmap.png"} <= set(shown)
    assert all((ROOT / file).read_bytes().startswith(b"\x89PNG") for file in shown)


def test_there_are_commands_of_every_guide() -> None:
    assert {"docs/quick-start.md", "docs/operating.md", "docs/troubleshooting.md"} <= {name for name, _ in COMMANDS}
    assert len(COMMANDS) > 30


@pytest.mark.parametrize(("name", "example"), CONFIGURATIONS)
def test_every_configuration_is_read(name: str, example: str, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(example)
    assert read_settings(file, {}) != Settings()


@pytest.mark.parametrize("name", GUIDES)
def test_what_is_shown_as_json_or_yaml_is_that(name: str) -> None:
    for block in blocks("json", TEXTS[name]):
        json.loads(block)
    for block in blocks("yaml", TEXTS[name]):
        assert yaml.safe_load(block)


@pytest.mark.parametrize("name", [name for name in GUIDES if name.startswith("docs/")])
def test_files_and_settings_that_are_named_exist(name: str) -> None:
    text = TEXTS[name]
    for path in re.findall(r"`((?:tests|deploy|conf|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    sections = "|".join(Settings.model_fields)
    for section, field in re.findall(rf"`({sections})\.(?!txt|json|toml|onnx|np[yz]|db|py\b)([a-z_]+)`", text):
        assert field in type(Settings.model_fields[section].default).model_fields, f"{name}: {section}.{field}"


def test_the_examples_for_those_who_build_on_it_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    examples = blocks("python", TEXTS["docs/api.md"])
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/api.md", "exec"), space)
    assert sorted(file.name for file in tmp_path.glob("*.dcm")) == ["sc.dcm", "sr.dcm"]
    assert len(space["findings"]) == 15  # type: ignore[arg-type]
    assert type(space["verdict"]).__name__ == "Typical"


def test_the_seams_are_where_they_are_said_to_be() -> None:
    import importlib

    rows = re.findall(r"^\| (`[^|]+`[^|]*) \| ([^|]+) \|", TEXTS["docs/api.md"], flags=re.MULTILINE)
    assert len(rows) > 8
    for what, where in rows:
        modules = [importlib.import_module(name) for name in re.findall(r"`([\w.]+)`", where)]
        for module in list(modules):
            folder = getattr(module, "__path__", None)
            names = [file.stem for file in Path(folder[0]).glob("*.py")] if folder else []
            modules += [importlib.import_module(f"{module.__name__}.{stem}") for stem in names if stem != "__init__"]
        for name in re.findall(r"`([A-Za-z_]+)(?:\.\w+)?(?:\([^)]*\))?[`:]", what)[:1]:
            assert any(hasattr(module, name) for module in modules), name


def test_every_file_that_the_architecture_names_is_there() -> None:
    named = set(re.findall(r"`((?:dicomnode|modeling)/[\w./]+)`", TEXTS["ARCHITECTURE.md"]))
    assert len(named) > 40
    assert {name for name in named if not (ROOT / name).exists()} == set()
