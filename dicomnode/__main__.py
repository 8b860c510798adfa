"""`python -m dicomnode` is the `cxrnode` command."""

from dicomnode.cli import main

if __name__ == "__main__":
    main()
