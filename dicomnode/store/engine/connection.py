"""What the store asks of a database connection, whatever engine is behind it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

Parameters = Mapping[str, Any] | Sequence[Any]
"""Values of a statement's placeholders: by name (`:study`), or in order (`?`)."""


class Row(Protocol):
    """One row of a query; a column is read by its name, or by its position."""

    def __getitem__(self, column: str | int, /) -> Any:
        """Return the value of a column. Raises: IndexError, if the query has no such column."""


class Cursor(Protocol):
    """The rows that a statement returned, or how many it changed."""

    @property
    def rowcount(self) -> int:
        """How many rows an INSERT, UPDATE or DELETE changed."""

    def fetchone(self) -> Any:
        """Return the next `Row`, or None after the last one."""

    def fetchall(self) -> list[Any]:
        """Return every `Row` that is left."""

    def __iter__(self) -> Iterator[Any]:
        """Yield every `Row` that is left."""


class Connection(Protocol):
    """A connection within a transaction that the engine begins and ends."""

    def execute(self, statement: str, parameters: Parameters = (), /) -> Cursor:
        """Execute one statement."""
