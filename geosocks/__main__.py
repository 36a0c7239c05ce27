"""``python -m geosocks``."""

import sys

from geosocks.cli import main

sys.exit(main())
