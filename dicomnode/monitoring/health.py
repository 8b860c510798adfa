"""Checks of the running node: whether its loops are alive, and whether it can take, analyse and keep a study."""

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dicomnode.bundle.reader import Bundle
from dicomnode.certificates import ServedCertificate
from dicomnode.domain.errors import CxrNodeError
from dicomnode.formatting import format_size
from dicomnode.settings.node import Settings
from dicomnode.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The state of the running process, read anew by each call. Counts are since its start.

    `threads`: whether each loop is alive, by name. `refused`: how often peers were refused, by event and reason.
    `circuit_breakers_open`: whether deliveries to a destination are paused, by its name. `certificates`: the served
    certificates, by "listener" and "page".
    """

    threads: Callable[[], Mapping[str, bool]]
    listening: Callable[[], bool]
    associations: Callable[[], int]
    accepted: Callable[[], int]
    refused: Callable[[], Mapping[tuple[str, str], int]]
    circuit_breakers_open: Callable[[], Mapping[str, bool]]
    certificates: Callable[[], Mapping[str, ServedCertificate]] = dict


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """The result of one check; `reason` says what was found, whether it passed or not."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The results of all checks."""

    checks: tuple[HealthCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """Return plain values: `passed`, and each check by name."""
        return {
            "passed": self.passed,
            "checks": {check.name: {"passed": check.passed, "reason": check.reason} for check in self.checks},
        }


def alive(running: Running) -> Verdict:
    """Check that every loop of the process is alive."""
    return Verdict(
        checks=tuple(
            HealthCheck(
                name=name, passed=lives, reason="running" if lives else "its thread has ended; restart the node"
            )
            for name, lives in sorted(running.threads().items())
        )
    )


def ready(running: Running, store: Store, bundle: Bundle, settings: Settings) -> Verdict:
    """Check that the node can take, analyse and keep a study now."""
    dead = [check.name for check in alive(running).checks if not check.passed]
    return Verdict(
        checks=(
            HealthCheck(
                name="threads",
                passed=not dead,
                reason=f"ended: {', '.join(dead)}; restart the node" if dead else "all running",
            ),
            _listener(running, settings),
            _store(store, settings.store.path),
            disk(settings),
            HealthCheck(
                name="model",
                passed=True,  # a node whose model cannot be verified does not start
                reason=f"{bundle.identity.name} {bundle.identity.version}, verified at the start",
            ),
        )
    )


def disk(settings: Settings) -> HealthCheck:
    """Check that more disk is free than must stay free."""
    least = settings.store.minimum_free_bytes
    try:
        free = shutil.disk_usage(settings.store.path).free
    except OSError as error:
        return HealthCheck(name="disk", passed=False, reason=f"the store's folder cannot be read: {error.strerror}")
    return HealthCheck(
        name="disk",
        passed=free >= least,
        reason=f"{format_size(free)} free, at least {format_size(least)} must stay free",
    )


def exposed_to_others(folder: Path) -> str:
    """Return what is wrong with the access rights of a store's folder, or "".

    The store holds patients' images, so other accounts must not enter it, and no group may write to it.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & (stat.S_IRWXO | stat.S_IWGRP):
        return ""
    return f"{folder} is open to other accounts of this machine (mode {mode:04o}): chmod 700 {folder}"


def _listener(running: Running, settings: Settings) -> HealthCheck:
    ports = ", ".join(str(port) for port, _ in settings.scp.ports())
    if running.listening():
        return HealthCheck(name="listener", passed=True, reason=f"listens on port {ports}")
    return HealthCheck(
        name="listener", passed=False, reason=f"does not listen on port {ports}; the node is starting or stopping"
    )


def _store(store: Store, folder: Path) -> HealthCheck:
    if not os.access(folder, os.W_OK):
        return HealthCheck(name="store", passed=False, reason="the store's folder cannot be written")
    try:
        store.watching.probe()
    except CxrNodeError as error:
        return HealthCheck(name="store", passed=False, reason=str(error))
    return HealthCheck(name="store", passed=True, reason="takes writes")
