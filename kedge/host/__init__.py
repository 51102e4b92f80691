"""What runs on a host: fence, journal, verify, unpack, switch, snapshot, start and stop.

Standard library only, Python 3.9 and newer, no import of the rest of kedge. The contract is
`docs/host-protocol.md`; this package is its one implementation.
"""

from __future__ import annotations
