"""`python -m fastinfogan` is `fastinfogan`."""

import sys

from fastinfogan.cli import main

sys.exit(main())
