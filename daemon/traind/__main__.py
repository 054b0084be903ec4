"""`python -m traind` is `traind`."""

import sys

from traind.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
