"""`python -m headwater` is `headwater`."""

import sys

from headwater.cli import main

sys.exit(main())
