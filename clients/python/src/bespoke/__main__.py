"""`python -m bespoke` is the command `bespoke`."""

import sys

from bespoke.cli import main

sys.exit(main())
