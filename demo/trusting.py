"""Before anything moves: a home, a release repository that people sign, a policy of all of them, and two attacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.documents import COMPONENT, HARDENED, NEW, OLD, release
from demo.keys import KEEPER, OTHER_KEEPER, PEOPLE
from demo.policies import POLICY, policy_text
from demo.show import Show, ShowError
from desk.documents import read_policy

REFUSED = 3
"""Exit code of kedge for what is not as it was signed."""


def trust(show: Show) -> None:
    """A home, a signed repository with three releases, and a policy; what is changed in the repository is refused."""
    screen, keeper = show.screen, KEEPER
    screen.act("Before anything moves · what is trusted, and by whose word")
    screen.say(
        f"{keeper.name.capitalize()} begins alone, in a folder of her own. One command makes all that kedge needs: a signed "
        "release repository, a policy, a key for the record, and a ring of keys, so that Temporal's database is given "
        "nothing but ciphertext."
    )
    words = ["--person", keeper.name, "--environment", "demo", "--key", f"keys/{keeper.name}"]
    show.kedge("init", *words)
    _fill(show)
    _share(show)
    _attack(show)


def _fill(show: Show) -> None:
    keeper, other = KEEPER.name, OTHER_KEEPER.name
    show.screen.say(
        f"The releases get into the repository (TUF, so any client of it can read it). {keeper.capitalize()} alone does not "
        f"make a release of etcd: {other.capitalize()} has to sign as well. Both are shown what they sign."
    )
    both = f"2:keys/{keeper}.pub,keys/{other}.pub"
    for version, more in ((OLD, ["--component", both]), (NEW, []), (HARDENED, [])):
        words = ["release", "add", show.paths.release_file(version), "--author", keeper]
        show.kedge(*words, *more, last=1)
    show.kedge("release", "sign", "--key", f"keys/{keeper}")
    show.kedge("release", "sign", "--key", f"keys/{other}", last=1)
    show.kedge("release", "publish", "--key", f"keys/{keeper}")


def _share(show: Show) -> None:
    """The policy becomes that of all of them, before it is pinned for the first time."""
    paths = show.paths
    file = paths.folder / POLICY
    first = read_policy(file).value
    if first.releases is None or first.evidence is None:
        raise ShowError(f"{file} names neither releases nor the worker's key")
    keys = {one.name: (paths.keys / f"{one.name}.pub").read_text().strip() for one in PEOPLE}
    text = policy_text(keys, first.releases.root, first.evidence.signers[0])
    file.write_text(text, encoding="utf-8")
    show.screen.say(
        f"Then others come in, and power is shared: they put into {POLICY} who they are, who may do what, and how many must "
        "agree."
    )
    show.screen.excerpt(POLICY, text.splitlines())
    show.screen.say("Who can approve? Who can take the fleet back?")
    for verb in ("approve", "rollback"):
        show.kedge("policy", "who-can", verb, POLICY)


def _attack(show: Show) -> None:
    """One byte of the metadata, then one of an archive: each is refused by the name of the attack, and put back."""
    screen, folder = show.screen, show.paths.repository
    archive = _only(folder / "targets" / COMPONENT / NEW, "*.tar")
    metadata = _only(folder / "metadata", f"*.{COMPONENT}.json")
    digest = archive.name.partition(".")[0].encode()
    screen.say(
        "Somebody gets into that folder: in the signed list he changes one digit of an archive's digest, then, in the "
        f"archive of etcd {NEW} itself, one bit. Both are refused before anything is touched, with exit code 3 and the "
        "name that the TUF specification gives to the attack."
    )
    for path, place in (
        (metadata, metadata.read_bytes().index(digest)),
        (archive, archive.stat().st_size // 2),
    ):
        with one_bit_changed(path, place):
            screen.strike(f"byte {place:,} of {path.relative_to(show.paths.folder)} is changed")
            answer = show.kedge("release", "verify", release(NEW), codes=(REFUSED,))
        refused = any("is refused (" in line for line in answer.err)
        show.judge(
            f"{'refused by its name' if refused else 'NOT refused by its name'}; the byte is put back",
            ok=refused,
        )


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise ShowError(f"there is no {pattern} in {folder}")
    return found[-1]


@contextmanager
def one_bit_changed(path: Path, place: int) -> Iterator[None]:
    """The lowest bit of the byte at ``place`` is the other one, for as long as this lasts."""
    flip(path, place)
    try:
        yield
    finally:
        flip(path, place)


def flip(path: Path, place: int) -> None:
    """Makes the lowest bit of a byte the other one."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
