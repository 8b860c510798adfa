"""The command line: one module per group of commands, each a thin layer over the node's parts."""

import sys


def main() -> None:
    """Run the `cxrnode` command."""
    try:
        from dicomnode.cli.main import run
    except ImportError as error:
        # The opencv-python wheel links against system libraries that slim images lack.
        if "cannot open shared object file" not in str(error):
            raise
        sys.exit(f"error: a system library is missing ({error}); on Debian: apt-get install libgl1 libglib2.0-0")
    run()
