"""What a file from outside may cost, measured: each reader in a process of its own, by the peak of its memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MEGABYTE = 1024 * 1024
READ = """
import resource, sys
from pathlib import Path
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
path = Path(sys.argv[1])
{imports}
before = peak()
{read}
print(peak() - before, said)
"""


def measured(path: Path, imports: str, read: str) -> tuple[int, str]:
    """Megabytes that reading cost beyond the program itself, and what came of it."""
    script = READ.format(imports=imports, read=read)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120, check=True)  # fmt: skip
    cost, _, said = done.stdout.strip().partition(" ")
    return int(cost), said


# -- evidence -----------------------------------------------------------------------------------------------------------

EVIDENCE = (
    "from desk.evidence import read_file",
    "said = [one.said for one in read_file(path).findings][:2]",
)
DOCUMENT = b'{"document":{"content":"'
BEHIND = b'","digest":"%s","what":"plan"}}\n' % (b"0" * 64)


def entry_of_many_values(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"entry":{"record":[')
        for _ in range(40):
            file.write(b"{}," * (MEGABYTE // 3))
        file.write(b"{}]}}\n")


def document_of_many_values(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"document":{"content":"","digest":[')
        for _ in range(40):
            file.write(b"{}," * (MEGABYTE // 3))
        file.write(b'{}],"what":"plan"}}\n')


def long_document(path: Path) -> None:
    with path.open("wb") as file:
        file.write(DOCUMENT)
        for _ in range(40):
            file.write(b'{\\"a\\":1},' * (MEGABYTE // 10))
        file.write(BEHIND)


# -- archives, answers, keys ------------------------------------------------------------------------------------------------


def crowded_zip(path: Path, *, honest: bool = True) -> None:
    """400,000 members of nothing, as zip writers write them; ``honest``: its end says how many."""
    name = b"n" * 60
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    one = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name  # fmt: skip
    count = 400_000
    with path.open("wb") as file:
        file.write(local)
        for _ in range(count):
            file.write(one)
        said = 1 if not honest else min(count, 65_535)
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, said, said, len(one) * count, len(local), 0))  # fmt: skip


def lying_zip(path: Path) -> None:
    crowded_zip(path, honest=False)


ZIP = (
    "import os, tempfile\nfrom kedge.host import unpacked, wheels\nfrom kedge.host.errors import ArchiveRefused",
    """
class Out:
    limits = unpacked.Limits(1 << 30, 50_000)
    files = ()
try:
    wheels.unpack_zip(os.open(path, os.O_RDONLY), Out(), lambda: None)
    said = "taken"
except ArchiveRefused as error:
    said = str(error)
""",
)


def pax_bomb(path: Path) -> None:
    """A header that says that half a gigabyte of names follows."""
    header = bytearray(512)
    header[:4] = b"pax\0"
    header[124:136] = b"%011o\0" % (512 * MEGABYTE)
    header[156:157] = b"x"
    header[257:263] = b"ustar\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with path.open("wb") as file:
        file.write(header)
        file.seek(512 * MEGABYTE)
        file.write(b"\0" * 1024)


TAR = (
    "import os\nfrom kedge.host import archive, streams, unpacked\nfrom kedge.host.errors import ArchiveRefused",
    """
try:
    archive.unpack_tar(streams.Raw(os.open(path, os.O_RDONLY)), b"", unpacked.Unpacked(None, unpacked.Limits(1 << 30, 1000)), lambda: None)
    said = "taken"
except ArchiveRefused as error:
    said = str(error)
""",
)


def values(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"[")
        for _ in range(15):
            file.write(b"[]," * (MEGABYTE // 3))
        file.write(b"[]]")


STATEMENT = (
    "from kedge.trust.strict_json import read_json",
    """
try:
    said = read_json(path.read_bytes(), most_bytes=16 << 20)
except ValueError as error:
    said = str(error)
""",
)


def long_key(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"ssh-ed25519 ")
        for _ in range(200):
            file.write(b"A" * MEGABYTE)


KEY = (
    "from desk.release_roles import public_key\nfrom kedge.model.errors import DriverError",
    """
try:
    public_key(path.rename(path.with_suffix(".pub"))); said = "taken"
except DriverError as error:
    said = error.kind
""",
)


def journal(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(60):
            file.write(b'{"a":[' + b"{}," * (MEGABYTE // 3) + b"{}]}\n")


JOURNAL = (
    "from kedge.trust.effects import compare\nfrom types import SimpleNamespace",
    """
node = SimpleNamespace(name="n", seen=(), steps={})
said = compare(node, path.read_bytes(), whole=False).findings[0].said
""",
)

CASES: dict[str, tuple[Callable[[Path], None], tuple[str, str], int, str]] = {
    "a record of 40 MB": (entry_of_many_values, EVIDENCE, 60, "too long"),
    "a document's line of 40 MB that is no text": (document_of_many_values, EVIDENCE, 150, "as a text"),
    "a document of 40 MB": (long_document, EVIDENCE, 320, "the header is the first line"),
    "a zip of 400,000 members": (crowded_zip, ZIP, 40, "more than 50000 members"),
    "a zip that says that it has one": (lying_zip, ZIP, 40, "larger than its members need"),
    "a tar header of half a gigabyte": (pax_bomb, TAR, 40, "too large"),
    "a statement of five million values": (values, STATEMENT, 40, "more than 1000000 values"),
    "a public key of 200 MB": (long_key, KEY, 40, "KeyRefused"),
    "a journal of twenty million values": (journal, JOURNAL, 150, "more than 4000000 values"),
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize("name", CASES)
def test_a_file_from_outside_costs_no_more_than_its_bound(name: str, tmp_path: Path) -> None:
    make, (imports, read), bound, says = CASES[name]
    path = tmp_path / "file"
    make(path)
    cost, said = measured(path, imports, read)
    assert says in said
    assert cost <= bound, f"{name} cost {cost} MB"


def test_what_a_measured_reader_spends_is_seen(tmp_path: Path) -> None:
    """The control: the same values, parsed."""
    values(tmp_path / "file")
    cost, said = measured(tmp_path / "file", "import json", "said = len(json.loads(path.read_bytes()))")  # fmt: skip
    assert int(said) == json.loads("[1]")[0] + 15 * (MEGABYTE // 3)
    assert cost > 250
