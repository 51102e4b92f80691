"""The host program as one file: the same bytes from the same sources, on every machine."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from typing import Tuple

EPOCH = (1980, 1, 1, 0, 0, 0)
START = b"import sys\nfrom kedge.host.program import main\nsys.exit(main(sys.argv[1:]))\n"


def bundle() -> bytes:
    """A zip application of this package and the version beside it.

    Sorted, with fixed times and modes and without compression, so that its bytes depend on nothing but
    the sources (compressed bytes depend on the version of zlib).
    """
    here = os.path.dirname(os.path.abspath(__file__))
    sources = {"__main__.py": START, "kedge/__init__.py": _read(f"{here}/../__init__.py")}
    for name in os.listdir(here):
        if name.endswith(".py") and name != "__main__.py":
            sources[f"kedge/host/{name}"] = _read(f"{here}/{name}")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path, content in sorted(sources.items()):
            entry = zipfile.ZipInfo(path, EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, content)
    return out.getvalue()


def named() -> Tuple[str, bytes]:
    """The bundle with the sha256 it is named by."""
    content = bundle()
    return hashlib.sha256(content).hexdigest(), content


def _read(path: str) -> bytes:
    with open(path, "rb") as source:
        return source.read()
