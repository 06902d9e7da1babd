"""`python -m sftbench`: the command line, for where the script `sftbench` is not on the path."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
