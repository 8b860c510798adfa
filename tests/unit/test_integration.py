"""What docs/integration.md recommends: configurations that the node reads, commands it has, and those the tests use."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydicom.uid import UID

from dicomnode.cli.main import app
from dicomnode.net.contexts import ACCEPTED_TRANSFER_SYNTAXES
from dicomnode.settings.node import Settings, read_settings
from tests.support.documents import INTEGRATION, blocks, orthanc_blocks
from tests.support.processes import orthanc_settings

TEXT = INTEGRATION.read_text(encoding="utf-8")
DOCUMENTED = blocks("toml", TEXT)
FAMILIES = {
    "ImplicitVR": "Implicit",
    "ExplicitVR": "Explicit",
    "RLE": "RLE",
    "JPEGBaseline": "JPEG Baseline",
    "JPEGExtended": "Extended",
    "JPEGLossless": "Lossless",
    "JPEGLS": "JPEG-LS",
    "JPEG2000": "JPEG 2000",
    "HTJ2K": "HTJ2K",
}
COMMANDS = [
    line.split("#")[0].strip()
    for block in blocks("sh", TEXT)
    for line in block.splitlines()
    if line.startswith("cxrnode")
]


@pytest.mark.parametrize("example", DOCUMENTED, ids=lambda text: text.split("\n", 1)[0])
def test_every_configuration_is_one(example: str, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(example)
    settings = read_settings(file, {})
    assert settings.delivery.destinations
    assert set(tomllib.loads(example)) <= set(Settings.model_fields)


def test_there_are_configurations_of_every_kind() -> None:
    said = "\n".join(DOCUMENTED)
    for word in ("return_to_sender", "default_destinations", "delivery.routes", "commitment", '"stow"', '"bearer"'):
        assert word in said


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one(line: str) -> None:
    _, *words = shlex.split(line)
    command: click.Command = typer.main.get_group(app)
    context = click.Context(command)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None, name
        command, context = found, click.Context(found, parent=context, info_name=name)
    command.make_context(context.info_name, words, parent=context.parent)


def test_the_commands_are_those_an_operator_needs() -> None:
    assert {line.split()[1] for line in COMMANDS} == {"check", "echo", "serve", "send", "why", "queue"}


def test_orthanc_is_configured_as_in_the_tests() -> None:
    (documented,) = (json.loads(block) for block in orthanc_blocks("json"))
    used = orthanc_settings(
        Path("/var/lib"), node_port=11112, dicom_port=4242, http_port=8042, plugins=["libOrthancDicomWeb.so"]
    )
    assert without_paths(documented) == without_paths(used)


def without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.endswith("Directory")}


def test_settings_named_in_the_text_exist() -> None:
    sections = Settings.model_fields
    named = re.findall(r"`(scp|store|results|delivery)\.([a-z_]+)`", TEXT)
    assert len(named) > 5
    for name, field in named:
        assert field in type(sections[name].default).model_fields, f"{name}.{field}"


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (INTEGRATION.parent / target).is_file(), target


def test_the_transfer_syntaxes_named_are_those_accepted() -> None:
    families = {
        next(word for keyword, word in FAMILIES.items() if UID(uid).keyword.startswith(keyword))
        for uid in ACCEPTED_TRANSFER_SYNTAXES
    }
    (row,) = (line for line in TEXT.splitlines() if line.startswith("| in these transfer syntaxes"))
    assert families == set(FAMILIES.values())
    assert [word for word in FAMILIES.values() if word not in row] == []
