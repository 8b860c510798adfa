"""Running other people's programs on what the node made."""

import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.peers.sources import Product
from tests.support.processes import require

TOOLS = 2
"""How many of them run at once."""
_LIMIT_S = 840


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, timeout=_LIMIT_S, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def run_each(program: str, products: Iterable[Product], *options: str) -> dict[str, str]:
    """Run a program on every product and return what it said, by product."""
    path, chosen = require(program), list(products)
    with ThreadPoolExecutor(TOOLS) as pool:
        said = pool.map(lambda product: run(path, *options, product.file), chosen)
        return dict(zip((product.name for product in chosen), said, strict=True))
