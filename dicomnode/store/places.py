"""What lies where in the folder of a store."""

DATABASE = "store.db"
LOCK = "node.lock"
BLOBS = "blobs"
UNCLAIMED = "unclaimed"
"""Blobs without a row: never promised, or the last copies if the database was replaced."""
QUARANTINE = "quarantine"
"""Blobs that no longer match their SHA-256, as `cxrnode store check --repair` found them."""
