"""`python -m maskdm`."""

import sys

from maskdm.cli import main

sys.exit(main())
