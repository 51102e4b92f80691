"""Before anything moves: a release repository that people sign, payloads that Temporal cannot read, and two attacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.documents import COMPONENT, HARDENED, NEW, OLD, release
from demo.keys import KEEPER, OTHER_KEEPER, PEOPLE, make_key
from demo.policies import POLICY, demands, policy_text
from demo.show import Show, ShowError
from demo.wheels import sha256_of
from worker.settings import Settings

REFUSED = 3
"""Exit code of kedge for what is not as it was signed."""


def trust(show: Show) -> None:
    """The releases get into a signed repository, the policy names its root; a changed byte of it is refused."""
    screen = show.screen
    screen.act("Before anything moves · what is trusted, and by whose word")
    screen.say(
        "Temporal's server keeps the histories of all runs. With a ring of keys of its own, kedge gives it nothing "
        "but ciphertext; what that leaves in its database is looked for at the end."
    )
    show.kedge("codec", "init")
    _fill(show)
    _name_root(show)
    _attack(show)


def _fill(show: Show) -> None:
    keeper, other = KEEPER.name, OTHER_KEEPER.name
    key = ["--key", f"keys/{keeper}"]
    show.screen.say(
        f"Releases come from a signed repository (TUF). {keeper.capitalize()} is {KEEPER.what}, with a plain SSH key; "
        f"nothing counts as an etcd release unless {other.capitalize()}, {OTHER_KEEPER.what}, signs it as well."
    )
    show.kedge("release", "init", *key)
    both = f"2:keys/{keeper}.pub,keys/{other}.pub"
    for version, more in ((OLD, ["--component", both]), (NEW, []), (HARDENED, [])):
        words = ["release", "add", show.paths.release_file(version), "--author", keeper]
        show.kedge(*words, *key, *more, last=2)
    show.kedge("release", "sign", "--key", f"keys/{other}")
    show.kedge("release", "publish", *key)


def _name_root(show: Show) -> None:
    """Writes the policy, and shows what it demands."""
    paths = show.paths
    root = sha256_of(paths.repository / "metadata" / "1.root.json")
    key = Settings.load(paths.home).checkpoint_key
    witness = make_key(key.parent, key.name)
    keys = {one.name: (paths.keys / f"{one.name}.pub").read_text().strip() for one in PEOPLE}
    (paths.folder / POLICY).write_text(policy_text(keys, root, witness), encoding="utf-8")
    show.screen.say(
        "The policy says who may do what. It names the root of that repository, by its digest: from now on nothing else "
        "can be moved to. And it names the key with which the worker signs the record of all that happens."
    )
    show.screen.excerpt(f"in {POLICY}", demands(root, witness).splitlines())


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
