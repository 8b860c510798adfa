"""Where the node that runs on a store has its page, for who looks at the store beside it: a small file of the store.

It is true while the store's lock is held; each start writes it anew.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from dicomnode.store.layout import PAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAddress:
    """The page's port, or why there is none; neither, where none is wanted."""

    port: int | None = None
    why_not: str = ""


def write_page_address(folder: Path, found: PageAddress) -> None:
    """Write down where the page is.

    Raises: OSError; the node can do without.
    """
    half = folder / f"{PAGE}.new"
    half.write_text(json.dumps({"port": found.port, "why_not": found.why_not}), encoding="utf-8")
    half.replace(folder / PAGE)


def read_page_address(folder: Path) -> PageAddress | None:
    """Return what the node wrote down; None, if there is nothing of the kind."""
    try:
        said = json.loads((folder / PAGE).read_text(encoding="utf-8"))
        port, why_not = said["port"], said["why_not"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return PageAddress(port=port if isinstance(port, int) else None, why_not=str(why_not))
