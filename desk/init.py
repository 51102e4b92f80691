"""``kedge init``: everything that one person on a laptop needs, safe by default, without writing over anything."""
# ruff: noqa: PLC0415 - TUF's library takes half a second to load: not for who asks for help

from __future__ import annotations

import asyncio
import getpass
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError

from desk import codec as desk_codec
from desk.first_policy import FirstPolicy, policy_text
from kedge.drivers.checkpoints import ensure_key
from kedge.drivers.files import read_key_line, store_error, write_atomic
from kedge.drivers.found_keys import FoundKey, held_by_agent, in_file, in_files, make
from kedge.drivers.owners import make_folder
from kedge.drivers.tuf_releases import TufReleases
from kedge.model.base import Digest, Frozen, Name
from kedge.model.errors import DriverError, PlanError
from kedge.model.policy import Policy
from kedge.plan.parse import parse
from kedge.trust.keys import parse_public_key
from worker.rings import required_mark
from worker.settings import CONFIG_FILE, Settings

if TYPE_CHECKING:
    from kedge.drivers.metadata_signers import MetadataKey

State = Literal["made", "there", "open"]
"""``open``: it was not made, because somebody has to say how."""
What = Literal[
    "key", "release key", "home", "evidence key", "payload keys", "releases", "settings", "policy"
]

_NAME = re.compile(r"[^a-z0-9._-]+")


class Wanted(Frozen):
    """What was said. ``key`` is a private file, ``agent`` a fingerprint or public file; neither: one is looked for."""

    folder: Path
    person: str = ""
    environment: str = "laptop"
    key: Path | None = None
    agent: str | None = None


class Item(Frozen):
    """One thing: what it is for, where it lies, and whether this call made it."""

    what: What
    path: str
    use: str
    state: State


class Made(Frozen):
    """Everything there is now, and what to type next."""

    folder: Path
    home: Path
    person: str
    fingerprint: str
    root: Digest
    items: tuple[Item, ...]
    next: tuple[str, ...]
    """Words behind ``kedge``."""


async def init(
    settings: Settings, wanted: Wanted, passphrase: Callable[[], str] | None = None
) -> Made:
    """Makes what is not there yet; what is there is left as it is.

    Called again it goes on where it was interrupted, and changes nothing once everything is there. Raises ``PlanError``
    where what is there does not fit together, ``DriverError`` for keys and files that cannot be used.
    """
    with _private():
        return await _Init(settings, wanted, passphrase).run()


@contextmanager
def _private() -> Iterator[None]:
    """All that is made meanwhile is its owner's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


class _Init:
    def __init__(
        self, settings: Settings, wanted: Wanted, passphrase: Callable[[], str] | None
    ) -> None:
        self._settings = settings
        self._wanted = wanted
        self._passphrase = passphrase
        self._folder = Path(os.path.abspath(wanted.folder))  # noqa: PTH100 - resolve() would follow links
        self._policy_file = self._folder / "policy.yaml"
        self._items: list[Item] = []

    async def run(self) -> Made:
        policy = self._policy()
        # Before anything is made: a name becomes the name of a file.
        _check_name("a person", self._wanted.person or "me")
        _check_name("an environment", self._wanted.environment)
        person = policy.people[0].name if policy else _named(self._wanted.person)
        try:
            self._home()
            key = await self._key(person, policy)
            keeper = self._keeper(key)
            witness = await asyncio.to_thread(self._witness)
            await asyncio.to_thread(self._codec)
            root = await self._releases(keeper)
            self._config()
            if policy is None:
                self._write_policy(person, key, root, witness)
            else:
                self._fits(policy, key, root, witness)
        except OSError as error:
            raise store_error("make what kedge needs here", error) from error
        return Made(
            folder=self._folder,
            home=self._settings.home,
            person=person,
            fingerprint=key.fingerprint,
            root=root,
            items=tuple(self._items),
            next=self._next(key, keeper),
        )

    def _item(self, what: What, path: Path | str, use: str, *, made: bool) -> None:
        shown = str(path)
        if isinstance(path, Path) and path.is_relative_to(self._folder):
            shown = str(path.relative_to(self._folder))
        self._items.append(Item(what=what, path=shown, use=use, state="made" if made else "there"))

    # -- one after the other: each needs what stands above it -------------------------------------

    def _policy(self) -> Policy | None:
        if not os.path.lexists(self._policy_file):
            return None
        return parse(self._policy_file.read_bytes(), str(self._policy_file), Policy).value

    def _home(self) -> None:
        home = self._settings.home
        made = not home.exists()
        make_folder(home)
        _not_for_git(home)
        use = "all that kedge keeps here: engine, stores, record, logs"
        shared = home.stat().st_mode & 0o077
        use += (
            "; others may look into it, `chmod 700` ends that"
            if shared
            else "; nobody else may look"
        )
        self._item("home", home, use, made=made)

    async def _key(self, person: str, policy: Policy | None) -> FoundKey:
        own = self._folder / "keys" / person
        there = own.exists()
        key = await self._found(own, policy)
        made = key is None
        if key is None:
            _not_for_git(own.parent)
            key = make(own, f"{person}@{_slug(self._folder.name, 'kedge')}")
        where: Path | str = key.file if key.file is not None else f"ssh-agent {key.fingerprint}"
        use = f"signs as {person}: orders" + ("" if key.hardware else ", and releases")
        if made or (there and key.file == own):
            use += f"; it has no passphrase, `ssh-keygen -p -f {own.relative_to(self._folder)}` gives it one"
        self._item("key", where, use, made=made)
        return key

    def _keeper(self, key: FoundKey) -> FoundKey:
        """The key that signs the repository's metadata: the same, but for hardware keys, which sign something around
        every message and so nothing that a stock client of the repository would take.
        """
        if not key.hardware:
            return key
        path = self._folder / "keys" / "releases"
        found = in_file(path)
        made = found is None
        use = "signs releases: a hardware key cannot; `ssh-keygen -p -f keys/releases` gives it a passphrase"
        self._item("release key", path, use, made=made)
        _not_for_git(path.parent)
        return found or make(path, "releases")

    async def _found(self, own: Path, policy: Policy | None) -> FoundKey | None:
        """The key that is named, or the one of the policy, or one that this person has already."""
        if self._wanted.key is not None:
            named = in_file(self._wanted.key.expanduser())
            if named is None:
                raise DriverError(
                    "KeyRefused", f"{self._wanted.key} is no private key that may sign", retryable=False,
                    next_step="name an Ed25519, ECDSA or RSA (3072) key of mode 0600, its .pub beside it",
                )  # fmt: skip
            return named
        held = await held_by_agent()
        if self._wanted.agent is not None:
            return _of_agent(self._wanted.agent, held)
        mine = in_file(own)
        files = in_files(Path.home() / ".ssh")
        every = (*((mine,) if mine else ()), *held, *files)
        if policy is not None:
            lines = {parse_public_key(line).line for one in policy.people for line in one.keys}
            every = tuple(one for one in every if one.line in lines)
        # Who has no terminal opens no lock. A hardware key is taken where it is named, or stands in the policy.
        usable = (
            one
            for one in every
            if (not one.hardware or policy is not None)
            and (one.hardware or not one.locked or self._passphrase is not None)
        )
        found = next(usable, None)
        if found is None and policy is not None:
            raise PlanError(
                f"{self._policy_file} is there, and none of its keys is at hand",
                next_step="name one of them with --key FILE or --agent KEY",
            )
        return found

    def _witness(self) -> str:
        path = self._settings.checkpoint_key
        there = path.exists()
        key = ensure_key(path)
        use = "the worker's own: it seals the record of what happened, and signs nothing else"
        self._item("evidence key", path, use, made=not there)
        return key.public.line

    def _codec(self) -> None:
        shown = desk_codec.show(self._settings)
        if not shown.required:
            use = "none: the setting payloads = open gives Temporal everything as it is"
            self._items.append(Item(what="payload keys", path="", use=use, state="open"))
            return
        made = not shown.clients
        if made and (shown.where or self._in_the_open()):
            # A ring is for every machine of a cluster alike, and how long histories in the open are read is no guess.
            use = (
                "none, or one ring for all: there may be runs already that were begun so; "
                "kedge codec init --grace 7d makes the rings"
            )
            self._items.append(Item(what="payload keys", path="", use=use, state="open"))
            return
        if made:
            shown = desk_codec.init(self._settings)
        use = "Temporal and its database see what is sealed with them; keep a copy of both rings where this machine is not"
        path = Path(shown.where) if os.sep in shown.where else shown.where
        self._item("payload keys", path, use, made=made)

    def _in_the_open(self) -> bool:
        """Whether to make a ring is asked of a person: no home that lost its own is one of those."""
        return (
            desk_codec.may_have_runs(self._settings) and not required_mark(self._settings).exists()
        )

    async def _releases(self, key: FoundKey) -> Digest:
        from kedge.drivers.metadata_signers import AgentKey, KeyFile

        location = self._settings.release_repository
        pins = TufReleases(location, self._settings.home / "trust" / "releases")
        if location is not None and "://" in location:
            self._item("releases", location, _RELEASES, made=False)
            return pins.pinned() or pins.client().root
        folder = Path(location) if location is not None else self._folder / "releases"
        first = folder / "metadata" / "1.root.json"
        there = first.exists()
        if not there and pins.pinned() is not None:
            raise PlanError(
                f"there is no repository in {folder}, and the home is pinned to another root than a new one would have",
                next_step="put the repository back, or begin in an empty folder",
            )
        if not there:
            # In this thread and not in one of its own: it may ask for a passphrase, and Ctrl-C has to end that.
            signer = AgentKey(key.line) if key.file is None else KeyFile(key.file, self._passphrase)
            await _new_repository(folder, signer)
        content = first.read_bytes()
        root = pins.pinned() or pins.pin(content)
        if root != sha256(content).hexdigest():
            raise PlanError(
                f"{folder} begins with another root than the one that is pinned in {self._settings.home}",
                next_step="name the repository that belongs to this home, or begin in an empty folder",
            )
        self._item("releases", folder, _RELEASES, made=not there)
        return root

    def _config(self) -> None:
        path = self._settings.home / CONFIG_FILE
        use = "settings of this home: where its releases are"
        if self._settings.release_repository is not None:
            if path.exists():
                self._item("settings", path, use, made=False)
            return
        folder = str(self._folder / "releases")
        line = f"release_repository = {_toml(folder)}"
        if path.exists():
            raise PlanError(
                f"{path} is there and says nothing of releases",
                next_step=f"add the line: {line}",
            )
        text = f"# Settings of this home; every one of them can be KEDGE_<NAME> in the environment too.\n{line}\n"
        write_atomic(path, text.encode())
        self._item("settings", path, use, made=True)

    def _write_policy(self, person: str, key: FoundKey, root: Digest, witness: str) -> None:
        text = policy_text(
            FirstPolicy(
                name=_slug(self._folder.name, "own"),
                environment=self._wanted.environment,
                person=person,
                key=f"{key.line} {person}",
                root=root,
                witness=f"{witness} kedge-checkpoint",
            )
        )
        # What is written is read as everybody will read it: a mistake is ours, and is not left behind.
        parse(text.encode(), str(self._policy_file), Policy)
        write_atomic(self._policy_file, text.encode())
        self._item("policy", self._policy_file, _POLICY, made=True)

    def _fits(self, policy: Policy, key: FoundKey, root: Digest, witness: str) -> None:
        """Nothing is written over: where the policy that is there is another one's, that is said."""
        lines = {parse_public_key(line).line for one in policy.people for line in one.keys}
        signers = policy.evidence.signers if policy.evidence else ()
        missing = []
        if key.line not in lines:
            missing.append(f"a person with the key {key.line}")
        if policy.releases is None or policy.releases.root != root:
            missing.append(f"releases: {{root: {root}}}")
        if witness not in {parse_public_key(line).line for line in signers}:
            missing.append(f'evidence: {{signers: ["{witness}"]}}')
        if missing:
            raise PlanError(
                f"{self._policy_file} is there, is left as it is, and lacks: {'; '.join(missing)}",
                next_step="put that in, or move the file away and call kedge init again",
            )
        self._item("policy", self._policy_file, _POLICY, made=False)

    def _next(self, key: FoundKey, keeper: FoundKey) -> tuple[str, ...]:
        option, keeps = (
            " ".join(_short(part, self._folder) for part in one.option) for one in (key, keeper)
        )
        name = self._policy_file.name
        documents = "--fleet FLEET.yaml --release NAME@VERSION --runbook RUNBOOK.yaml"
        return (
            f"release add RELEASE.yaml {keeps} --publish",
            f"up --fleet FLEET.yaml --policy {name}",
            f"start {documents} --policy {name} {option}",
            f"release publish --renew {keeps}",
        )


async def _new_repository(folder: Path, signer: MetadataKey) -> None:
    """A repository that stands there whole or not at all: one that was interrupted could neither go on nor begin anew."""
    from desk.releases import ReleaseDesk

    with _beside(folder) as making:
        trust = TufReleases(str(making), making.with_name("trust"))
        await ReleaseDesk(trust, str(making)).init(making, (), [signer])


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A place to make it in, which becomes the folder once nothing went wrong."""
    if folder.exists() and any(folder.iterdir()):
        raise PlanError(
            f"{folder} is there, and nothing was published from it yet",
            next_step="`kedge release sign` and `kedge release publish` go on with it; or move it away",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".releases-", dir=folder.parent) as beside:
        making = Path(beside, "repository")
        yield making
        making.rename(folder)


_RELEASES = (
    "the signed repository: what it lists may run, nothing else; its root is pinned in the home"
)
_POLICY = "who may say what, and how many must agree"


def _not_for_git(folder: Path) -> None:
    """Nothing of a folder gets into a repository by an ``add`` of everything."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / ".gitignore").exists():
        write_atomic(folder / ".gitignore", b"*\n")


def _of_agent(wanted: str, held: tuple[FoundKey, ...]) -> FoundKey:
    text = wanted.strip()
    if not text.startswith("SHA256:"):
        try:
            text = parse_public_key(read_key_line(Path(text).expanduser())).fingerprint
        except (OSError, UnicodeDecodeError) as error:
            said = f"{wanted} is neither a fingerprint nor a public key file"
            raise DriverError("NotFound", said, retryable=False, next_step="ssh-add -l lists them") from error  # fmt: skip
    for one in held:
        if one.fingerprint == text:
            return one
    raise DriverError(
        "NotFound", f"the ssh-agent does not hold {text}", retryable=False,
        next_step="ssh-add KEY, or name a file with --key",
    )  # fmt: skip


def _check_name(whose: str, name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise PlanError(
            f"{name!r} is no name for {whose}",
            next_step="lower-case letters, digits, '.', '_' and '-' make one",
        ) from error


def _named(wanted: str) -> str:
    """The person's name: as said, else as the person is called on this machine."""
    if wanted:
        return wanted
    try:
        login = getpass.getuser()
    except (KeyError, OSError):
        login = ""
    return _slug(login, "me")


def _slug(text: str, otherwise: str) -> str:
    return _NAME.sub("-", text.lower()).strip("._-")[:60].strip("._-") or otherwise


def _short(text: str, folder: Path) -> str:
    return str(Path(text).relative_to(folder)) if text.startswith(f"{folder}{os.sep}") else text


def _toml(text: str) -> str:
    """A basic string of TOML; JSON's escapes are among those it knows."""
    import json

    return json.dumps(text, ensure_ascii=False)
