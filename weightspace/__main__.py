"""`python -m weightspace` is the command line."""

import sys

from weightspace.cli import main

if __name__ == "__main__":
    sys.exit(main())
