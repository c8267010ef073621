"""`python -m fastdecode` is the command `fastdecode`."""

import sys

from .cli import main

sys.exit(main())
