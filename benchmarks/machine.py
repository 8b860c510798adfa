"""Describes the machine: processor, memory, load, versions; and finds the peers' programs."""

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dicomnode import __version__

_LIBRARIES = ("onnxruntime", "numpy", "opencv-python", "pydicom", "pynetdicom", "highdicom")
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Searched first, since the virtual environment has programs with the same names as DCMTK's."""


def program(name: str) -> str | None:
    """Return the path of a peer's program, or None where it is not installed."""
    return shutil.which(name, path=_SYSTEM_PATH) or shutil.which(name)


def facts() -> str:
    """Return one line with the time, the machine and the versions."""
    cores, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    peers = ", ".join(filter(None, (_peer("Orthanc"), _peer("storescp"))))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {_processor()}, {cores} cores, {memory:.0f} GiB; "
        f"load {os.getloadavg()[0]:.1f} at the start; cxrnode {__version__}, Python {platform.python_version()}, "
        f"{libraries}" + (f"; {peers}." if peers else ".")
    )


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _peer(name: str) -> str | None:
    path = program(name)
    if path is None:
        return None
    printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    found = re.search(r"\d+\.\d+\.\d+", printed)
    return f"{name} {found[0] if found else 'of unknown version'}"
