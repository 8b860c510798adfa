"""The address of the running node's page, in a small file of its store, for commands that run beside the node.

Each start writes the file. It is valid while the store's lock is held.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from dicomnode.store.layout import PAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAddress:
    """The page's port, or the reason why there is no page; neither if the page is switched off."""

    port: int | None = None
    why_not: str = ""


def write_page_address(folder: Path, found: PageAddress) -> None:
    """Write the page's address into the store's folder.

    Raises: OSError.
    """
    half = folder / f"{PAGE}.new"
    half.write_text(json.dumps({"port": found.port, "why_not": found.why_not}), encoding="utf-8")
    half.replace(folder / PAGE)


def read_page_address(folder: Path) -> PageAddress | None:
    """Return the page's address; None if the file is absent or damaged."""
    try:
        found = json.loads((folder / PAGE).read_text(encoding="utf-8"))
        port, why_not = found["port"], found["why_not"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return PageAddress(port=port if isinstance(port, int) else None, why_not=str(why_not))
