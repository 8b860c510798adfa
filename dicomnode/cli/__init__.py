"""The command line: one module for each command or group of commands, a thin layer over the other packages."""

import gc
import sys


def main() -> None:
    """Run the `cxrnode` command."""
    # Imported modules are never freed. Collecting garbage while they are imported took 0.25 of 1.3 s; later each full
    # collection took 90 ms, in which every thread waited.
    gc.disable()
    try:
        from dicomnode.cli.main import run
    except ImportError as error:
        # The opencv-python wheel links against system libraries that slim images lack.
        if "cannot open shared object file" not in str(error):
            raise
        sys.exit(f"error: a system library is missing ({error}); on Debian: apt-get install libgl1 libglib2.0-0")
    gc.freeze()
    gc.enable()
    run()
