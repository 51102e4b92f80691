"""Documents made to hurt: each in a process of its own that may have 2 s of CPU and 200 MB, and says what it used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SECONDS = 2.0
MEGABYTES = 200
LARGE = 8 * 1024 * 1024 - 100

CHILD = """
import sys, time
from kedge.model.errors import DocumentError
from kedge.plan.parse import parse_any

kind, *rest = sys.argv[1:]
from tests.plan.test_worst_documents import DOCUMENTS
content = DOCUMENTS[kind]()
began = time.process_time()
try:
    parse_any(content, "doc.yaml")
    print("sound")
except DocumentError as error:
    print(len(error.problems), max(map(len, error.problems)), error.problems[0][:200])
print(time.process_time() - began)
# Not ru_maxrss: over fork and exec that keeps the peak of the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) / 1024)
"""

DOCUMENTS = {
    "a list as long as the file": lambda: b"- a\n" * (LARGE // 4),
    "a list in brackets as long as the file": lambda: b"[" + b"a," * (LARGE // 2) + b"]",
    "brackets, deeper than any stack": lambda: b"[" * LARGE,
    "braces, deeper than any stack": lambda: b"{a: " * (LARGE // 4),
    "indentation, deeper than any stack": lambda: b"".join(b" " * i + b"a:\n" for i in range(3000)),
    "half a million keys": lambda: b"".join(b"k%d: v\n" % i for i in range(550_000)),
    "one key a million times": lambda: b"k: v\n" * (LARGE // 5),
    "one word of eight megabytes": lambda: b"kind: " + b"x" * (LARGE - 10),
    "one key of eight megabytes": lambda: b"x" * (LARGE - 10) + b": 1",
    "one unknown key as long as allowed": lambda: (
        b"kind: Fleet\n? " + b"x" * 1_000_000 + b"\n: 1\n"
    ),
    "escapes": lambda: b'kind: "' + b"\\n" * (LARGE // 2 - 10) + b'"',
    "a billion laughs": lambda: (
        b"a: &a [x, x]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (i, i) for i in range(200_000))
    ),
    "a document that holds itself": lambda: b"kind: Fleet\nnodes: &n [*n]\n",
    "a million documents": lambda: b"--- a\n" * (LARGE // 6),
    "nothing but comments": lambda: b"# x\n" * (LARGE // 4),
    "nothing but NUL": lambda: b"\0" * LARGE,
    "nothing but next-line characters": lambda: "\x85".encode() * (LARGE // 2),
    "a bad byte at the very end": lambda: b"kind: Fleet\n" * 600_000 + b"\xff",
    "a hundred thousand unknown keys": lambda: (
        b"kind: Fleet\n" + b"".join(b"u%d: 1\n" % i for i in range(100_000))
    ),
    "a hundred thousand bad nodes": lambda: (
        b"kind: Fleet\nnodes:\n" + b"".join(b"- {nmae: %d}\n" % i for i in range(100_000))
    ),
    "twenty thousand nodes with bad labels": lambda: (
        b"kind: Fleet\nnodes:\n" + b"- {name: a, labels: {a: 1, b: 2, c: 3}}\n" * 20_000
    ),
    "twenty thousand nodes of one name": lambda: (
        b"kind: Fleet\nname: f\nenvironment: e\nrelease: r\nroot: /r\nrun: {argv: [a]}\nnodes:\n"
        + b"- {name: a}\n" * 20_000
    ),
    "one node with a hundred thousand labels": lambda: (
        b"kind: Fleet\nnodes:\n- name: a\n  labels:\n"
        + b"".join(b"    l%d: 1\n" % i for i in range(100_000))
    ),
    "four hundred thousand steps": lambda: b"kind: Runbook\nnode:\n" + b"- stat\n" * 400_000,
    "a thousand roles for a thousand verbs": lambda: (
        b"kind: Policy\nmay:\n"
        + b"".join(b"  v%d: [%s]\n" % (i, b"r, " * 500) for i in range(1000))
    ),
    "a million anchors": lambda: b"- &a b\n" * (LARGE // 7),
    "tags that would run something": lambda: (
        b"- !!python/object/apply:os.system [x]\n" * (LARGE // 39)
    ),
    "question marks": lambda: b"? " * (LARGE // 2),
    "dashes": lambda: b"- " * (LARGE // 2),
    "a number of eight megabytes": lambda: b"kind: " + b"9" * (LARGE - 10),
    "numbers too large for a float": lambda: b"- 1e999\n" * (LARGE // 8),
    "a block of a million lines": lambda: b"kind: |\n" + b" x\n" * (LARGE // 3),
    "a folded text of a million lines": lambda: b"kind: >\n" + b" x\n" * (LARGE // 3),
    "plain text over a million lines": lambda: b"kind: x\n" + b"  y\n" * (LARGE // 4 - 5),
    "quotes that never close": lambda: b"kind: '" + b"x\n" * (LARGE // 2 - 10),
    "more bytes than a document may have": lambda: b"# " + b"x" * (LARGE + 200),
    "a regular expression within itself": lambda: (
        b"kind: Runbook\nfacts: {a: {http: http://x, expect: {a: {matches: '"
        + b"(" * 400
        + b"'}}}}\n"
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_it_is_refused_within_two_seconds_and_two_hundred_megabytes(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, name],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    said, seconds, megabytes = done.stdout.strip().rsplit("\n", 2)
    assert said.partition(" ")[0].isdecimal(), said
    assert int(said.split(" ")[1]) < 2000
    assert float(seconds) < SECONDS
    assert float(megabytes) < MEGABYTES
