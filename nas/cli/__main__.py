"""`python -m inlay.nas.cli` is the `inlay` command."""

import sys

from inlay.nas.cli.app import main

sys.exit(main())
