"""`python -m tests.fuzz [--seconds S] [TARGET ...]`: coverage-guided fuzzing; what fails is kept in the corpus.

Needs atheris, which has wheels for Linux: `pip install 'cxrnode[fuzz]'`, as `make fuzz` does.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import NAMES

CRASHES = Path(__file__).parent / "crashes"
LONGEST_BYTES = 16_384


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        fuzz(arguments.only, arguments.seconds)
    failed = [name for name in arguments.targets or NAMES if _in_process(name, arguments.seconds)]
    print("no target failed" if not failed else f"failed: {', '.join(failed)}; the inputs are in {CRASHES}")
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with atheris.instrument_imports(include=["dicomnode", "pydicom", "pynetdicom", "highdicom"]):
        from tests.fuzz.seeds import seeds
        from tests.fuzz.targets import TARGETS, run
    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    crashes = CRASHES / name
    crashes.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST_BYTES}", f"-artifact_prefix={crashes}/"]
    atheris.Setup([sys.argv[0], str(corpus), str(crashes), *options], lambda data: run(TARGETS[name], data))
    atheris.Fuzz()


def _in_process(name: str, seconds: int) -> int:
    words = [sys.executable, "-m", "tests.fuzz", "--only", name, "--seconds", str(seconds)]
    return subprocess.run(words, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
