"""``python -m sigeo``."""

import sys

from sigeo.cli import main

sys.exit(main())
