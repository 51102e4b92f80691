"""`python -m kedge.host …` in a checkout, and `python3 -I -S host.pyz …` anywhere."""

from __future__ import annotations

import sys

from kedge.host.program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
