"""A program of the lab beside its server (`shutdown`, `cmd`, …): see labd/standalone.py."""

import sys

from labd.standalone import main

sys.exit(main(sys.argv[1], sys.argv[2:]))
