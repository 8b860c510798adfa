"""Which rows need which blob: received images and results whose bytes are not purged."""

import contextlib
from collections.abc import Iterable

from dicomnode.domain.errors import CxrNodeError
from dicomnode.store.blobs.local import BlobNames, Blobs, Inventory
from dicomnode.store.engine import Connection, Database

NAMES_OF_PREFIX = """
SELECT blob, 'image' AS what FROM instance WHERE blob >= :low AND blob < :high AND purged_at IS NULL
UNION
SELECT blob, 'result' FROM result WHERE blob >= :low AND blob < :high AND purged_at IS NULL
UNION
SELECT blob, 'purged' FROM instance WHERE blob >= :low AND blob < :high AND purged_at IS NOT NULL
UNION
SELECT blob, 'purged' FROM result WHERE blob >= :low AND blob < :high AND purged_at IS NOT NULL
"""

NAMES = "SELECT blob FROM instance WHERE purged_at IS NULL UNION SELECT blob FROM result WHERE purged_at IS NULL"

_NEEDED = """
SELECT 1 FROM instance WHERE blob = :blob AND purged_at IS NULL
UNION ALL
SELECT 1 FROM result WHERE blob = :blob AND purged_at IS NULL
LIMIT 1
"""


def is_named(connection: Connection, name: str) -> bool:
    """Tell whether a row needs the bytes of that name."""
    return connection.execute(_NEEDED, {"blob": name}).fetchone() is not None


def remove_unnamed(database: Database, blobs: Blobs, names: Iterable[str]) -> None:
    """Remove blobs that were written for rows that were not committed, unless another row needs them.

    A file that cannot be removed now was never acknowledged; the next start sets it aside.
    """
    with contextlib.suppress(CxrNodeError), database.without_writers() as connection:
        for name in names:
            if not is_named(connection, name):
                blobs.remove(name)


def reconcile(database: Database, blobs: Blobs) -> Inventory:
    """Compare blobs with rows, and set aside what no row names; only the process that owns the store may do so.

    Raises: StoreUnavailable.
    """

    def names_of(prefix: str) -> BlobNames:
        with database.reading() as connection:
            # 'g' follows every hexadecimal digit.
            rows = connection.execute(NAMES_OF_PREFIX, {"low": prefix, "high": f"{prefix}g"}).fetchall()
        found = {"image": set[str](), "result": set[str](), "purged": set[str]()}
        for row in rows:
            found[row["what"]].add(row["blob"])
        return BlobNames(
            images=frozenset(found["image"]),
            results=frozenset(found["result"]),
            purged=frozenset(found["purged"]),
        )

    return blobs.reconcile(names_of)
