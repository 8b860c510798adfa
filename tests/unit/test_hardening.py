"""A process that holds patient data keeps it to itself; looked at from inside a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

LOOK = """
import ctypes, json, os, resource, sys
from dicomnode.cli.process import keep_to_oneself
os.umask(0)
keep_to_oneself()
open("file", "w").close()
os.mkdir("folder")
child = os.spawnvp(os.P_WAIT, "sh", ["sh", "-c", "test $(ulimit -c) = 0 && test $(umask) = 0077"])
print(json.dumps({
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
    "modes": [os.stat(name).st_mode & 0o777 for name in ("file", "folder")],
    "child": child,
}))
"""


def test_files_are_the_owners_only_and_no_core_is_left(tmp_path: Path) -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert json.loads(found.stdout) == {"core": [0, 0], "dumpable": 0, "modes": [0o600, 0o700], "child": 0}
