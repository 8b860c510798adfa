"""`cxrnode support-bundle`: an archive for a support case that names no patient, no host and no secret."""

import hashlib
import hmac
import json
import os
import platform
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dicomnode import __version__
from dicomnode.bundle.reader import open_bundle
from dicomnode.cli.queue import open_beside_node
from dicomnode.cli.terminal import ConfigOption, StoreOption, escape, out, settings_from
from dicomnode.domain.errors import ConfigurationError, CxrNodeError
from dicomnode.node import utc_now
from dicomnode.settings.node import Settings, default_bundle
from dicomnode.store.counters import Figures
from dicomnode.store.engine import engine_version

_LIBRARIES = (
    "pydicom", "pynetdicom", "highdicom", "numpy", "onnxruntime", "opencv-python", "pylibjpeg", "pylibjpeg-openjpeg",
    "pylibjpeg-libjpeg", "python-gdcm", "dicomweb-client", "requests", "pydantic", "pydantic-settings", "typer", "rich",
)  # fmt: skip
_REDACTED = "(set, not shown)"
_LOG_LINES = 2000
_LOG_BYTES = 4 << 20
# Fields of a log line whose values are the node's own words or numbers, never a peer's.
_LOG_PLAIN = frozenset(
    {
        "at",
        "level",
        "logger",
        "raised",
        "reason",
        "status",
        "attempt",
        "times",
        "version",
        "size_bytes",
        "kind",
        "missing",
    }
)
_LOG_HASHED = frozenset({"study", "instance", "association"})
_EVENT = re.compile(r"[a-z0-9-]{1,60}")
_WORDS = re.compile(r"[\w ().:<,+-]{0,400}")

Hashing = Callable[[str], str]


def support_bundle(
    to: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.zip", help="The archive to write; a new file.")],
    config: ConfigOption = None,
    store: StoreOption = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help="The node's log (JSON lines), if it was kept in a file."),
    ] = None,
) -> None:
    """Write an archive for a support case: versions, settings, figures; no patients, UIDs, hosts or secrets."""
    settings = settings_from(config, store=store)
    key = secrets.token_bytes(32)

    def hashed(text: str) -> str:
        # The key is not kept: equal UIDs get equal digests within one archive, and nobody can try UIDs against them.
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:12]

    parts = {
        "versions.json": _versions(),
        "machine.json": _machine(settings.store.path),
        "settings.json": redacted(settings),
        "model.json": _model(settings),
        "store.json": _store(config, store, hashed),
    }
    texts = {name: json.dumps(part, indent=2, sort_keys=True, default=str) for name, part in parts.items()}
    if log is not None:
        texts["log.jsonl"] = "\n".join(_log_lines(log, hashed))
    _write(to, texts)
    out.print(f"{escape(str(to))}: {', '.join(texts)}. Look at it before you give it away.")


def redacted(model: BaseModel) -> dict[str, Any]:
    """Return the settings, with each text replaced unless it is a default or one of a closed set of words."""
    return {
        name: _redacted_value(getattr(model, name), field.annotation, field.get_default(call_default_factory=True))
        for name, field in type(model).model_fields.items()
    }


def _redacted_value(value: Any, annotation: Any, default: Any) -> Any:
    if isinstance(value, BaseModel):
        return redacted(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Enum):
        return value.value
    if (default is not PydanticUndefined and value == default) or get_origin(annotation) is Literal:
        return list(value) if isinstance(value, tuple) else value if isinstance(value, dict) else str(value)
    if isinstance(value, tuple):
        return [_redacted_value(entry, None, PydanticUndefined) for entry in value]
    return f"({len(value)} entries, not shown)" if isinstance(value, dict) else _REDACTED


def _versions() -> dict[str, Any]:
    return {
        "cxrnode": __version__,
        "made_at": utc_now().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "database": engine_version(),
        "libraries": {name: _version_of(name) for name in _LIBRARIES},
    }


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine(folder: Path) -> dict[str, Any]:
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    disk = shutil.disk_usage(there)
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "processors_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": os.getloadavg(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk_bytes": {"total": disk.total, "free": disk.free},
        "in_container": Path("/.dockerenv").exists(),
    }


def _model(settings: Settings) -> dict[str, Any]:
    try:
        bundle = open_bundle(settings.inference.bundle or default_bundle())
    except CxrNodeError as error:
        return {"error": type(error).__name__}
    identity = bundle.identity
    shipped = settings.inference.bundle is None
    return {
        "name": identity.name if shipped else _REDACTED,
        "version": identity.version,
        "hash": identity.bundle_hash,
        "members": bundle.manifest.members,
        "input_side": bundle.manifest.input.side,
        "hashes_agree": True,
    }


def _store(config: Path | None, store: Path | None, hashed: Hashing) -> dict[str, Any]:
    try:
        with open_beside_node(config, store) as opened:
            figures, balance = opened.statistics.figures(), opened.ledger.balance()
    except CxrNodeError as error:
        return {"error": type(error).__name__}
    return _told(figures, hashed) | {"balance": {name: getattr(balance, name) for name in balance.__slots__}}


def _told(figures: Figures, hashed: Hashing) -> dict[str, Any]:
    return {
        "schema_version": figures.schema_version,
        "sound": figures.sound,
        "since": figures.since,
        "counts": figures.counts,
        "sizes": figures.sizes,
        "newest_steps": [
            {"at": step.at, "study": hashed(step.study), "version": step.version, "kind": step.kind}
            for step in figures.steps
        ],
    }


def _log_lines(file: Path, hashed: Hashing) -> Iterator[str]:
    """Yield the newest lines of a log, of each only the fields that are known to name nobody."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _LOG_BYTES))
            lines = opened.read(_LOG_BYTES).decode(errors="replace").splitlines()[-_LOG_LINES:]
    except OSError as error:
        raise ConfigurationError(f"the log {file} cannot be read: {error.strerror}") from error
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and _EVENT.fullmatch(str(record.get("event", ""))):
            yield json.dumps(_log_fields(record, hashed), sort_keys=True)


def _log_fields(record: dict[str, Any], hashed: Hashing) -> dict[str, Any]:
    kept: dict[str, Any] = {"event": record["event"]}
    for name, value in record.items():
        if name in _LOG_HASHED and isinstance(value, str):
            kept[name] = hashed(value)
        elif name in _LOG_PLAIN and _WORDS.fullmatch(str(value)):
            kept[name] = value
    return kept


def _write(file: Path, texts: dict[str, str]) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as opened, zipfile.ZipFile(opened, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
