"""What a process that holds patient data does first: its files are its owner's only, and it leaves no core behind."""

import ctypes
import os
import resource
import sys

_PR_SET_DUMPABLE = 4
_NO_ACCESS_FOR_OTHERS = 0o077


def keep_to_oneself() -> None:
    """Let nobody else read what this process and its children write, nor what they have in memory."""
    os.umask(_NO_ACCESS_FOR_OTHERS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A core that is piped to a program (systemd-coredump, apport) is not bound by the limit.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
