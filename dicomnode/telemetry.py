"""Logging: one JSON object on each line, stable event names, no patient data."""

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from dicomnode.settings.node import LogSettings

log = logging.getLogger(__name__)

_OWN = ("dicomnode", "modeling")
_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, event, and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _event(record),
        }
        line.update(_extra(record))
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Formats a record for people: time, level, event, then `key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).astimezone()
        fields = " ".join(f"{key}={_on_one_line(value)}" for key, value in _extra(record).items())
        return f"{at:%H:%M:%S} {record.levelname.lower():7} {_event(record)} {fields}".rstrip()


def start_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Write the node's log to `stream`, or to standard error; of other libraries' errors only where they arose."""
    to = stream or sys.stderr
    text = settings.format == "text" or (settings.format == "auto" and to.isatty())
    handler = logging.StreamHandler(to)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    logging.getLogger("dicomnode").setLevel(settings.level)
    logging.captureWarnings(capture=True)
    # pydicom and highdicom put values of data elements into their messages, which may be patient data.
    for library in ("pydicom", "highdicom", "pynetdicom", "pylibjpeg", "py.warnings", "dicomweb_client", "urllib3"):
        silent = logging.getLogger(library)
        silent.handlers[:] = [logging.NullHandler()]
        silent.propagate = False


def _on_one_line(value: object) -> str:
    """Return text without control characters; a peer may have sent it, with a line break to forge a line of the log."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def log_uncaught() -> None:
    """Log uncaught exceptions without their messages, which Python would print and which may quote a data set."""
    sys.excepthook = _note_uncaught
    threading.excepthook = lambda caught: _note_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    sys.unraisablehook = lambda caught: _note_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)


def where_raised(error: BaseException) -> str:
    """Return an exception's class and call stack without its message, which may quote a data set."""
    steps = [f"{frame.name} ({frame.filename.rsplit('/', 1)[-1]}:{frame.lineno})" for frame in _stack(error)]
    return f"{type(error).__name__} in " + " < ".join(reversed(steps))


def _note_uncaught(
    kind: type[BaseException],
    error: BaseException | None,
    where: TracebackType | None,  # noqa: ARG001 Python's own
) -> None:
    raised = where_raised(error) if error is not None else kind.__name__
    log.critical("uncaught", extra={"raised": raised, "in_thread": threading.current_thread().name})


def _event(record: logging.LogRecord) -> str:
    """Return the event's name; for other libraries only the place, since their messages may quote a data set."""
    if str(record.name).split(".")[0] in _OWN:
        return record.getMessage()
    return f"library-message {record.name}:{record.lineno}"


def _stack(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__, limit=-12))


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    fields = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
    if record.exc_info and record.exc_info[1] is not None:
        fields["raised"] = where_raised(record.exc_info[1])
    return fields
