"""The program: `session`, `serve SOCKET`, `journal ROOT`, `version`.

Exit codes: 0 done, 1 an operation failed, 2 the call or the input was wrong.
"""

from __future__ import annotations

import os
import sys
from typing import List

from kedge import __version__
from kedge.host.errors import Fault

USAGE = "usage: host.pyz session | serve SOCKET | journal ROOT | version\n"


def main(arguments: List[str]) -> int:
    """Do what the arguments say; gives the exit code."""
    if arguments[:1] in (["session"], ["serve"]) and sys.getfilesystemencoding() != "utf-8":
        sys.stderr.write("names of files are not UTF-8 here: call it with -X utf8, in any locale\n")
        return 2
    # Modes are what the calls say, whoever started us: another user may run the daemon, and reads the release.
    os.umask(0o022)
    if arguments == ["session"]:
        return _session()
    if len(arguments) == 2 and arguments[0] == "serve":
        return _serve(os.path.abspath(arguments[1]))
    if len(arguments) == 2 and arguments[0] == "journal":
        return _journal(arguments[1])
    if arguments == ["version"]:
        sys.stdout.write(f"kedge host {__version__} protocol 1\n")
        return 0
    sys.stderr.write(USAGE)
    return 2


def _session() -> int:
    from kedge.host import session  # noqa: PLC0415 -- `version` starts without it

    return session.converse(session.Wire(0, 1))


def _serve(path: str) -> int:
    # Imported before any fork what a session would otherwise import by itself.
    import encodings.idna  # noqa: F401, PLC0415 -- getaddrinfo loads it for names
    import lzma  # noqa: F401, PLC0415
    import zipfile  # noqa: F401, PLC0415

    from kedge.host import server, wheels  # noqa: F401, PLC0415

    return server.serve(path)


def _journal(root: str) -> int:
    """Check the whole chain of a node's journal, and say its length and last hash."""
    from kedge.host import files, journal, places  # noqa: PLC0415 -- `version` starts without it

    try:
        place = places.Directory(root) / ".kedge/journal"
        content = files.read_bytes(place, journal.LIMIT) or b""
        count, head = journal.check_chain(content)
    except (Fault, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{count} {head}\n")
    return 0
