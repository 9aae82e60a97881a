"""`python -m bfmpipe`."""

import sys

from bfmpipe.cli import main

sys.exit(main())
