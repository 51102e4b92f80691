"""A verifier that somebody else wrote: from docs/evidence.md alone, with the standard library and ``ssh-keygen``.

It knows nothing of kedge and imports nothing of it. It follows what the page says of the file, of the chain, of
checkpoints and of what people signed; what the policy allows whom is kedge's own to judge.

    python stranger.py run.evidence allowed_signers workers

``workers`` has a line ``worker namespaces="kedge-checkpoint" KEY`` for each key under ``evidence.signers``. Says what it
found, and ends with 1 where something does not hold.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHAIN = b"kedge-chain-1\x00"


def rfc8785(value: Any) -> bytes:
    """Keys by UTF-16, nothing between, text as it is; numbers of records are whole."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return b"{" + b",".join(rfc8785(key) + b":" + rfc8785(value[key]) for key in keys) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(rfc8785(one) for one in value) + b"]"
    if isinstance(value, float):
        raise ValueError("a broken number")  # noqa: TRY004 - of the file, not of this program
    return json.dumps(value, ensure_ascii=False).encode()


def signed(message: bytes, signature: str, signers: Path, who: str, namespace: str) -> bool:
    """Whether ``ssh-keygen -Y verify`` takes it."""
    with tempfile.NamedTemporaryFile("w", suffix=".sig") as kept:
        kept.write(signature)
        kept.flush()
        call = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", who, "-n", namespace]
        done = subprocess.run(
            [*call, "-s", kept.name], input=message, capture_output=True, check=False
        )
    return done.returncode == 0


def read(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    """The lines of a file, each with its one key; and what does not hold of the file itself."""
    content = path.read_bytes()
    wrong: list[str] = [] if content.endswith(b"\n") else ["the last line has no end"]
    found: list[tuple[str, Any]] = []
    lines = content.split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            exact = isinstance(value, dict) and len(value) == 1 and rfc8785(value) == line
        except (ValueError, TypeError):
            exact = False
        if exact:
            found += value.items()
        else:
            wrong.append(f"line {number} is not in its one form")
    whole = b"".join(line + b"\n" for line in lines[:-1])
    seal = {"digest": hashlib.sha256(whole).hexdigest(), "lines": len(lines) - 1}
    if not found or found[-1] != ("seal", seal):
        wrong.append("the seal is not over what stands before it")
    return found, wrong


def documents(lines: list[tuple[str, Any]]) -> list[str]:
    """Documents whose digest is another than the one they are named by."""
    return [
        f"document {one['digest'][:12]} is something else"
        for what, one in lines
        if what == "document"
        and hashlib.sha256(one["content"].encode()).hexdigest() != one["digest"]
    ]


def chain(lines: list[tuple[str, Any]], workers: Path) -> list[str]:
    """The first record that does not follow, and checkpoints that are not over the record before them."""
    header = next((one for what, one in lines if what == "header"), None)
    if header is None:
        return ["there is no header"]
    seq, end = header["after"]["seq"], header["after"]["hash"]
    if (
        seq == 0
        and end != hashlib.sha256(CHAIN + b"genesis\x00" + header["fleet"].encode()).hexdigest()
    ):
        return ["the record does not begin as that of its fleet"]
    last = 0
    for what, one in lines:
        if what == "entry":
            seq += 1
            over = rfc8785({"key": one["key"], "record": one["record"]})
            new = hashlib.sha256(CHAIN + bytes.fromhex(end) + over).hexdigest()
            if (one["seq"], one["previous"], one["hash"]) != (seq, end, new):
                return [f"record {seq} does not follow the one before it"]
            end = new
        elif what == "checkpoint":
            names = ("at", "fleet", "hash", "seq")
            said = {"format": 1, "kind": "KedgeCheckpoint", **{name: one[name] for name in names}}
            here = (one["seq"], one["hash"], one["fleet"]) == (seq, end, header["fleet"])
            if not here or not signed(
                rfc8785(said), one["signature"], workers, "worker", "kedge-checkpoint"
            ):
                return [f"the checkpoint at {one['seq']} does not hold"]
            last = seq
    wrong = (
        [] if (seq, end) == (header["end"]["seq"], header["end"]["hash"]) else ["it ends otherwise"]
    )
    return wrong if last == seq else [*wrong, f"nobody signed records {last + 1} to {seq}"]


def orders(lines: list[tuple[str, Any]], people: Path) -> list[str]:
    """Orders that were accepted, and were not signed by whom the record says."""
    wrong: list[str] = []
    for what, one in lines:
        record = one["record"] if what == "entry" else {}
        if record.get("what") != "order" or record.get("accepted") is not True:
            continue
        envelope = record["case"]["envelope"]
        said = (envelope["order"].encode(), envelope["signature"], people, record["person"])
        if not signed(*said, "kedge-order"):
            wrong.append(f"record {one['seq']} has an order that {record['person']} did not sign")
    return wrong


def main(file: str, people: str, workers: str) -> int:
    """Says what does not hold."""
    lines, wrong = read(Path(file))
    if not wrong:
        wrong = [*documents(lines), *chain(lines, Path(workers)), *orders(lines, Path(people))]
    sys.stdout.write("".join(f"{one}\n" for one in wrong) or "it holds\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
