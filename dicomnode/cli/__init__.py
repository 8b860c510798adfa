"""The command line: one module per group of commands, each a thin layer over the node's parts."""

import gc
import sys


def main() -> None:
    """Run the `cxrnode` command."""
    # What is imported stays. Looking through it for garbage, again and again while it grew, took 0.25 of 1.3 s; and
    # later 90 ms at each full collection, with every thread waiting.
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
