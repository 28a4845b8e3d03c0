"""Runs the command line: `python -m headwater` is the same as `headwater`."""

import sys

from headwater.cli import main

sys.exit(main())
