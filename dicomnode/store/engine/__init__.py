"""The database behind the store: opening, migrations, transactions and the lock of the store."""
