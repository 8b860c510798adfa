"""The README names the commands there are, and the two that set everything up."""

import re

import typer

from dicomnode.cli.main import app
from dicomnode.settings.node import Settings
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_table_of_commands_is_the_command_line() -> None:
    commands = typer.main.get_group(app).commands
    there = {name for name, command in commands.items() if name != "version" and not command.hidden}
    listed = set(re.findall(r"^\| `cxrnode ([a-z-]+)", README, flags=re.MULTILINE))
    assert listed == there


def test_the_first_commands_are_on_the_first_screen_and_in_the_makefile() -> None:
    first_screen = README.splitlines()[:24]
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "serve", "test"):
        assert any(line.startswith(f"make {target} ") for line in first_screen)
        assert f"\n{target}:" in makefile


def test_settings_named_in_the_readme_exist() -> None:
    sections = Settings.model_fields
    for section, field in re.findall(r"`([a-z]+)\.(?!txt|json|toml|onnx|npz)([a-z_]+)`", README):
        assert field in type(sections[section].default).model_fields, f"{section}.{field}"
