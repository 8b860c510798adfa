"""The database behind the store: connections, migrations, transactions, and the lock of the store.

The rest of the store knows `Database`, `Connection` and `Row` only, so that another engine can take SQLite's place.
"""

from dicomnode.store.engine.connection import Connection, Row
from dicomnode.store.engine.sqlite import Database, engine_version, migrations, read_what_is_readable

__all__ = ["Connection", "Database", "Row", "engine_version", "migrations", "read_what_is_readable"]
