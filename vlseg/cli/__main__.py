"""`python -m vlseg.cli`."""

import sys

from vlseg.cli.app import main

sys.exit(main())
