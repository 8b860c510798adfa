"""The code blocks of the documentation, for tests that try what it recommends."""

import re
import textwrap

from tests.conftest import ROOT

_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INTEGRATION = ROOT / "docs" / "integration.md"


def blocks(language: str, text: str) -> list[str]:
    """Return the fenced blocks of a language, in order, without their indentation."""
    return [textwrap.dedent(body) for _, named, body in _BLOCK.findall(text) if named == language]


def section(title: str, text: str) -> str:
    """Return what stands under a heading of the second level."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return next(part for part in parts if part.split("\n", 1)[0] == title)


def orthanc_blocks(language: str) -> list[str]:
    """Return the blocks of a language that the section on Orthanc shows."""
    return blocks(language, section("Orthanc", INTEGRATION.read_text(encoding="utf-8")))
