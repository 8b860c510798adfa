"""The state of a node, read from its store and, if the node runs, from its page (`/readyz`)."""

import json
import shutil
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from dicomnode.monitoring.health import HealthCheck, disk
from dicomnode.monitoring.page_address import PageAddress, read_page_address
from dicomnode.settings.http import HttpSettings
from dicomnode.settings.node import Settings
from dicomnode.store import Store
from dicomnode.store.counters import DestinationFigures, Operations, Waiting
from dicomnode.store.engine.lock import is_held
from dicomnode.store.layout import LOCK
from dicomnode.web.alarms import Alarm, alarms

_LONGEST_ANSWER = 65_536
_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What is known of a node at one moment.

    `checks` are those of the running node; of a node that does not answer, only those that need no node.
    """

    at: datetime
    running: bool
    said: str
    checks: tuple[HealthCheck, ...]
    operations: Operations
    destinations: tuple[DestinationFigures, ...]
    alarms: tuple[Alarm, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the node runs, every check passes, and nothing needs an operator."""
        return self.running and all(check.passed for check in self.checks) and not self.alarms

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "at": self.at.isoformat(timespec="seconds"),
            "running": self.running,
            "said": self.said,
            "passed": self.passed,
            "checks": {check.name: {"passed": check.passed, "reason": check.reason} for check in self.checks},
            "alarms": [alarm.as_json() for alarm in self.alarms],
            "studies": {state.value: _waiting(found, self.at) for state, found in self.operations.jobs.items()},
            "answers": dict(self.operations.outcomes),
            "destinations": {entry.name: _destination(entry, self.at) for entry in self.destinations},
        }


def look(store: Store, settings: Settings, now: datetime) -> Status:
    """Read the state of a node from its store, and ask the node if one runs.

    Raises: StoreUnavailable.
    """
    running, said, checks = _ask(settings)
    operations = store.watching.operations()
    configured = [entry.label for entry in settings.delivery.destinations]
    return Status(
        at=now,
        running=running,
        said=said,
        checks=checks,
        operations=operations,
        destinations=operations.destinations_with(configured),
        alarms=alarms(
            operations,
            configured,
            now,
            free_bytes=shutil.disk_usage(settings.store.path).free,
            minimum_free_bytes=settings.store.minimum_free_bytes,
        ),
    )


def running_node(folder: Path) -> str:
    """Return which process runs a node on a store, as its lock file names it; "" if none does."""
    lock = folder / LOCK
    if not is_held(lock):
        return ""
    try:
        return lock.read_text(encoding="utf-8", errors="replace")[:200] or "another process"
    except OSError:
        return "another process"


def _ask(settings: Settings) -> tuple[bool, str, tuple[HealthCheck, ...]]:
    """Return whether a node runs on the store, a sentence on it, and the checks."""
    if not running_node(settings.store.path):
        return False, "no node runs on this store", (disk(settings),)
    page = read_page_address(settings.store.path) or PageAddress(
        port=settings.http.port if settings.http.enabled else None
    )
    if page.why_not:
        missing = HealthCheck(name="page", passed=False, reason=page.why_not)
        return True, "a node runs on this store, without its page", (disk(settings), missing)
    if not page.port:
        return True, "a node runs on this store; it is not asked, since its page is off", (disk(settings),)
    url = _url(settings.http, page.port)
    answer = _fetch(url)
    if answer is None:
        return True, f"a node runs on this store, but {url} does not answer", (disk(settings),)
    return True, f"running, version {answer.get('version', 'unknown')}", _checks(answer)


def _url(http: HttpSettings, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.bind, http.bind)
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if http.certificate else 'http'}://{shown}:{port}/readyz"


def _fetch(url: str) -> dict[str, Any] | None:
    """Return the node's answer to /readyz, ready or not; None if there is no such answer."""
    # No secret is sent, and the certificate is for another name than the address that is asked.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _AnyStatus()
    )
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            said = json.loads(answer.read(_LONGEST_ANSWER))
    except (OSError, ValueError, HTTPException):
        return None
    return said if isinstance(said, dict) and isinstance(said.get("checks"), dict) else None


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Accepts every status: a node that is not ready answers with 503."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:  # noqa: ARG002 urllib's
        """Return the answer."""
        return response

    https_response = http_response


def _checks(answer: dict[str, Any]) -> tuple[HealthCheck, ...]:
    return tuple(
        HealthCheck(name=str(name), passed=said.get("passed") is True, reason=str(said.get("reason", "")))
        for name, said in answer["checks"].items()
        if isinstance(said, dict)
    )


def _waiting(found: Waiting, now: datetime) -> dict[str, Any]:
    age_s = found.age_s(now)
    return {"count": found.count, "oldest_s": None if age_s is None else round(age_s)}


def _destination(entry: DestinationFigures, now: datetime) -> dict[str, Any]:
    return {
        "up": entry.is_up,
        "waiting": _waiting(entry.waiting, now),
        "dead": entry.dead,
        "overdue_commitments": entry.overdue_commitments,
        "delivered": entry.delivered,
        "failed": entry.failed,
        "failures_in_row": entry.failures_in_row,
        "last_error": entry.last_error,
        "next_try_at": entry.next_try_at and entry.next_try_at.isoformat(timespec="seconds"),
        "last_delivered_at": entry.last_delivered_at and entry.last_delivered_at.isoformat(timespec="seconds"),
        "last_failed_at": entry.last_failed_at and entry.last_failed_at.isoformat(timespec="seconds"),
    }
