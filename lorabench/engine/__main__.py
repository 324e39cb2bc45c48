"""Command line for stores: `python -m lorabench.engine ls|why|check|gc`."""

import sys

from lorabench.engine.store_commands import main

sys.exit(main(sys.argv[1:]))
