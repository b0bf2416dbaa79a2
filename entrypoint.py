#!/usr/bin/env python3
"""`python entrypoint.py ...` is `mlip-pace ...`: the image's entrypoint."""

import sys

from mlip_pace.cli import main

sys.exit(main())
