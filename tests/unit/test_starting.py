"""What precedes every command: imports without a look for garbage, which is collected from then on."""

import subprocess
import sys

RUN_S = 120
PROGRAM = """
import builtins, gc
from dicomnode.cli import main
ordinary, seen = builtins.__import__, {}
def watched(name, *rest):
    if name == "dicomnode.cli.main":
        seen["importing"] = gc.isenabled()
    return ordinary(name, *rest)
ordinary("dicomnode.cli.main", fromlist=["run"]).run = lambda: print(
    seen["importing"], gc.isenabled(), gc.get_freeze_count() > 10_000
)
builtins.__import__ = watched
main()
"""


def test_garbage_is_left_alone_during_imports_and_collected_while_a_command_runs() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=RUN_S, check=False)
    assert ended.stdout.split() == ["False", "True", "True"], ended.stderr
