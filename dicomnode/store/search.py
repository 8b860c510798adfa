"""Finding a study by its patient or its order, without keeping who they are.

A number is kept as its HMAC under a key of the store's own. The key lies in a file beside the database: a copy of the
database alone, as in a backup or a support case, tells nobody's number, not even by trying them all.
"""

import hashlib
import hmac
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from dicomnode.domain.errors import ConfigurationError
from dicomnode.domain.job import Subject

Kind = Literal["patient", "accession"]

_KEY_BYTES = 32

NOTE = "INSERT INTO study_key (kind, digest, study) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"

FORGET = "DELETE FROM study_key WHERE study = ?"


class SearchIndex:
    """Writes down digests of what studies are searched by."""

    def __init__(self, key: bytes) -> None:
        """`key` is what the store keeps for nothing else."""
        self._key = key

    @classmethod
    def of(cls, file: Path, *, create: bool) -> "SearchIndex | None":
        """Read the key, or make one; None where there is none and none is to be made.

        Raises: ConfigurationError.
        """
        try:
            if create and not file.exists():
                _write_synced(file, secrets.token_bytes(_KEY_BYTES))
            key = file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise ConfigurationError(f"the key {file} can be neither read nor made: {error.strerror}") from error
        if key and len(key) != _KEY_BYTES:
            raise ConfigurationError(
                f"{file} is not a key of this store; without it a new one is made, and studies answered before are "
                "found by their UID and date only"
            )
        return cls(key) if key else None

    def note(self, connection: sqlite3.Connection, study: str, subjects: Iterable[Subject]) -> None:
        """Make a study be found by these, in the caller's transaction."""
        for subject in subjects:
            for kind, value in subject.items():
                connection.execute(NOTE, (kind, self.digest(kind, value), study))

    def digest(self, kind: str, value: str) -> str:
        """Return what a number is kept as; upper and lower case are one, as are spaces around it."""
        return hmac.new(self._key, f"{kind}\0{value.strip().casefold()}".encode(), hashlib.sha256).hexdigest()


def forget(connection: sqlite3.Connection, study: str) -> None:
    """Have a study be found by nobody's number any more, in the caller's transaction."""
    connection.execute(FORGET, (study,))


def _write_synced(file: Path, key: bytes) -> None:
    """Write a key whole or not at all, for the store's owner only."""
    half = file.with_suffix(".new")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IRUSR | stat.S_IWUSR)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    half.replace(file)
