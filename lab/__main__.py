"""`python -m lab`."""

import signal
import sys

from lab.cli import main

# `lab status | head` is no error.
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
sys.exit(main())
