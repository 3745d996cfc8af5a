"""``python -m reapx``."""

import sys

from .cli.main import main

sys.exit(main())
