"""Logs are lines of JSON with stable names, and carry nothing of the data set."""

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

from dicomnode.settings.node import LogSettings
from dicomnode.telemetry import TextFormatter, log_uncaught, start_logging, where_raised


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook)
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    root.handlers[:], level = before[0], before[1]
    root.setLevel(level)
    logging.captureWarnings(False)
    for library in ("pydicom", "highdicom", "pynetdicom", "pylibjpeg", "py.warnings"):
        logging.getLogger(library).propagate = True
        logging.getLogger(library).handlers.clear()


def test_a_peer_cannot_forge_a_line_of_text() -> None:
    record = logging.makeLogRecord({"msg": "association-opened", "calling_ae": "A\n12:00:00 info forged\x1b[2J"})
    assert len(TextFormatter().format(record).splitlines()) == 1
    assert "\x1b" not in TextFormatter().format(record)


def test_an_event_is_one_line_of_json_with_its_fields() -> None:
    stream = io.StringIO()
    start_logging(LogSettings(), stream)
    logging.getLogger("dicomnode.test").info("study-answered", extra={"study": "1.2.3", "results": 2})
    line = json.loads(stream.getvalue())
    assert (line["event"], line["study"], line["results"], line["level"]) == ("study-answered", "1.2.3", 2, "info")


def test_a_traceback_says_where_but_not_what() -> None:
    stream = io.StringIO()
    start_logging(LogSettings(), stream)
    try:
        raise ValueError("CANARY^NAME cannot be parsed")
    except ValueError:
        logging.getLogger("dicomnode.test").exception("study-failed")
    assert "CANARY" not in stream.getvalue()
    assert "ValueError in test_a_traceback_says_where_but_not_what" in json.loads(stream.getvalue())["raised"]


@pytest.mark.parametrize("library", ["pydicom", "highdicom", "pynetdicom.events"])
def test_libraries_that_quote_data_sets_are_silent(library: str) -> None:
    stream = io.StringIO()
    start_logging(LogSettings(level="DEBUG"), stream)
    logging.getLogger(library).error("invalid value CANARY^NAME")
    assert stream.getvalue() == ""


def test_text_is_for_people() -> None:
    stream = io.StringIO()
    start_logging(LogSettings(format="text"), stream)
    logging.getLogger("dicomnode.test").warning("no-destination", extra={"results_stay_in": "store"})
    assert stream.getvalue().strip().endswith("warning no-destination results_stay_in=store")


def test_where_raised_names_the_call_chain() -> None:
    def inner() -> None:
        raise KeyError("secret")

    with pytest.raises(KeyError) as caught:
        inner()
    assert where_raised(caught.value).startswith("KeyError in inner (test_telemetry.py:")
    assert "secret" not in where_raised(caught.value)


def test_warnings_of_libraries_reach_neither_log_nor_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    start_logging(LogSettings(), stream)
    # The test runner records warnings in its own way; what matters is that logging took over from it.
    assert warnings.showwarning.__module__ == "logging"
    warnings.showwarning("Invalid value for VR PN: 'CANARY^NAME'", UserWarning, "valuerep.py", 1)
    assert stream.getvalue() == capsys.readouterr().err == ""


@pytest.mark.parametrize("library", ["requests", "PIL.Image", "fontTools", "a.library.of.tomorrow"])
def test_of_an_error_in_another_library_only_the_place_is_told(library: str) -> None:
    for layout in ("json", "text"):
        stream = io.StringIO()
        start_logging(LogSettings(level="DEBUG", format=layout), stream)
        logging.getLogger(library).error("cannot make sense of %s", "CANARY^NAME")
        assert f"library-message {library}:" in stream.getvalue()
        assert "CANARY" not in stream.getvalue()


def _fail() -> None:
    raise ValueError("CANARY^NAME cannot be parsed")


def test_an_exception_that_ends_a_thread_is_told_without_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    start_logging(LogSettings(), stream)
    log_uncaught()
    thread = threading.Thread(target=_fail, name="association")
    thread.start()
    thread.join()
    line = json.loads(stream.getvalue())
    assert (line["event"], line["in_thread"]) == ("uncaught", "association")
    assert line["raised"].startswith("ValueError in _fail")
    assert "CANARY" not in stream.getvalue() + capsys.readouterr().err


def test_an_exception_that_ends_the_process_is_told_without_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    start_logging(LogSettings(), stream)
    log_uncaught()
    try:
        _fail()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert json.loads(stream.getvalue())["event"] == "uncaught"
    assert "CANARY" not in stream.getvalue() + capsys.readouterr().err
