"""A question at a terminal is answered, or ended with Ctrl-C or Ctrl-D: then nothing is done, with exit code 130."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import asyncssh
import pytest

from cli.exits import Exit
from kedge.trust.policies import policy_text
from tests.trust import world

KEDGE = str(Path(sys.executable).parent / "kedge")
CTRL_C, CTRL_D = "\x03", "\x04"


def at_terminal(argv: list[str], folder: Path, question: str, keys: str) -> tuple[int, str]:
    """A command with a terminal of its own: once it shows ``question``, ``keys`` are pressed. Exit code, and all it showed."""
    pid, master = pty.fork()
    if pid == 0:
        # Who runs tests in the background of a shell has this signal ignored; a person at a terminal has not.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir(folder)
        os.execve(argv[0], argv, {**os.environ, "KEDGE_HOME": str(folder / ".kedge")})  # noqa: S606
    seen, pressed, deadline = "", False, time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.2)[0]:
                continue
            try:
                got = os.read(master, 65_536)
            except OSError:  # the other end is closed
                break
            seen += got.decode("utf-8", "replace")
            if question in seen and not pressed:
                os.write(master, keys.encode())
                pressed = True
        else:
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"it did not end:\n{seen}")
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(master)
    return os.waitstatus_to_exitcode(status), seen


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy that can be signed, and two keys beside it."""
    path = tmp_path / "policy.json"
    path.write_text(policy_text(world.policy()))
    for name, passphrase in (("open", None), ("locked", "nobody types it")):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(tmp_path / name), passphrase=passphrase)
        (tmp_path / name).chmod(0o600)
    return path


@pytest.mark.parametrize("keys", [CTRL_C, CTRL_D, "n\n", "\n"], ids=["^C", "^D", "no", "enter"])
def test_whatever_is_not_yes_signs_nothing(policy: Path, keys: str) -> None:
    argv = [KEDGE, "policy", "sign", policy.name, "--key", "open"]
    code, seen = at_terminal(argv, policy.parent, "sign this policy?", keys)
    assert code == Exit.INTERRUPTED, seen
    assert "nothing was signed" in seen
    assert "Traceback" not in seen
    assert not (policy.parent / "policy.signed.json").exists()


@pytest.mark.parametrize("keys", [CTRL_C, CTRL_D], ids=["^C", "^D"])
def test_a_passphrase_that_is_not_given_signs_nothing(policy: Path, keys: str) -> None:
    argv = [KEDGE, "policy", "sign", policy.name, "--key", "locked", "--yes"]
    code, seen = at_terminal(argv, policy.parent, "passphrase of the key:", keys)
    assert code == Exit.INTERRUPTED, seen
    assert "interrupted" in seen
    assert "Traceback" not in seen
    assert not (policy.parent / "policy.signed.json").exists()


def test_one_ctrl_c_ends_a_question_within_asynchronous_work(tmp_path: Path) -> None:
    # As orders are asked for: between what the engine answers. asyncio keeps the first Ctrl-C for itself.
    script = (
        "import asyncio, sys\nfrom cli import asking\n"
        "async def ask() -> None:\n    sys.exit(40 + asking.agrees('go on?'))\n"
        "asyncio.run(ask())\n"
    )
    code, seen = at_terminal([sys.executable, "-c", script], tmp_path, "go on?", CTRL_C)
    assert code == 40, seen


def test_yes_is_yes(policy: Path) -> None:
    argv = [KEDGE, "policy", "sign", policy.name, "--key", "open"]
    code, seen = at_terminal(argv, policy.parent, "sign this policy?", "y\n")
    assert code == Exit.DONE, seen
    assert (policy.parent / "policy.signed.json").exists()
