"""``python -m jaxscape``: the command line."""

import sys

from jaxscape.cli import main

if __name__ == "__main__":
    sys.exit(main())
