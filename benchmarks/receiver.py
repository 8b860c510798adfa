"""The node's listener and store alone, in a process of their own: `python -m benchmarks.receiver PORT STORE`.

It ends when its standard input does. With `--profile` it then prints, as JSON, where its threads were found.
"""

import json
import sys
import threading
import time
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from dicomnode.net.scp.server import StorageScp
from dicomnode.settings.node import AssemblySettings, ScpSettings, StoreSettings
from dicomnode.store import Store

_SAMPLE_S = 0.002
_PLACES = {
    ("transport.py", "receive"): "reading the socket",
    ("blobs.py", ""): "blobs: SHA-256, write, fsync",
    ("arriving.py", ""): "blobs: SHA-256, write, fsync",
    ("commits.py", ""): "",
    ("database.py", ""): "SQLite, with its fsync",
    ("reception.py", ""): "SQLite, with its fsync",
}


def main() -> None:
    port, path, profile = int(sys.argv[1]), Path(sys.argv[2]), "--profile" in sys.argv
    with Store.open(StoreSettings(path=path), AssemblySettings(), exclusive=True) as store:
        scp = StorageScp(
            ScpSettings(port=port, bind="127.0.0.1", ae_title="CXRNODE"),
            store.reception,
            clock=lambda: datetime.now(UTC),
            identifiers=lambda: uuid.uuid4().hex,
            arriving=None if "--whole" in sys.argv else store.reception.arriving,
        )
        scp.start()
        samples: Counter[str] = Counter()
        if profile:
            threading.Thread(target=_sample, args=(samples,), daemon=True).start()
        print("listening", flush=True)
        sys.stdin.read()
        scp.stop(drain_s=5)
    if profile:
        print(json.dumps(samples))


def _sample(samples: Counter[str]) -> None:
    me = threading.get_ident()
    while True:
        time.sleep(_SAMPLE_S)
        for thread, frame in sys._current_frames().items():  # noqa: SLF001 there is no public way to it
            if thread != me and (place := _place(frame)):
                samples[place] += 1


def _place(frame: FrameType) -> str:
    """Return the place in the code that a thread is at, "" when it waits."""
    code = frame.f_code
    file = Path(code.co_filename)
    if file.name in ("selectors.py", "threading.py", "queue.py", "socketserver.py") or "receiver" in file.name:
        return ""
    for (name, function), place in _PLACES.items():
        if file.name == name and function in ("", code.co_name):
            return place
    if "pynetdicom" in file.parts:
        waits = code.co_name in ("ready", "run_reactor", "_run_reactor", "run", "get_msg", "_is_transport_event")
        return "" if waits else "pynetdicom"
    return "dicomnode/net" if "dicomnode" in file.parts else f"{file.name}:{code.co_name}"


if __name__ == "__main__":
    main()
