"""`python -m maskdm`."""

import sys

from maskdm.cli.main import main

sys.exit(main())
