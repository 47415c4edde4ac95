"""Run the command line with `python -m spectrax`."""

import sys

from spectrax.cli import main

if __name__ == "__main__":
    sys.exit(main())
