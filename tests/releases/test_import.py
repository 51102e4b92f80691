"""``kedge release import``: what a vendor published becomes a release, with the vendor's signatures beside it."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.exits import Exit
from cli.main import app
from desk.upstream import past_imports
from kedge.model.errors import DocumentError
from kedge.model.trusted import ReleaseName
from kedge.model.upstream import VendorImport
from tests.releases.test_provenance import BUILDERS, attest, policy
from tests.releases.world import World, archive
from tests.trust.vendors import Gpg, gpg_home, minisign_public, minisigned, ssh_key, ssh_signed

KEEPERS = ("ada", "bob", "robot")
FILE = "daemon-{}-linux-amd64.tar.gz"


class Vendor:
    """What a vendor's download page has of one version, in a folder, and the pinned keys."""

    def __init__(self, base: Path, version: str) -> None:
        self.version = version
        self.folder = base / f"vendor-{version}"
        self.folder.mkdir()
        self.file = self.folder / FILE.format(version)
        self.file.write_bytes(archive(version))
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        self.sums = self.folder / "SHA256SUMS"
        self.sums.write_text(f"{digest}  {self.file.name}\n{'0' * 64}  daemon-src.tar.gz\n")
        self.signatures: list[Path] = []
        self.pins: list[Path] = []

    def minisign(self, content: bytes | None = None) -> Vendor:
        made = minisigned("mia", self.sums.read_bytes() if content is None else content)
        return self._signed("SHA256SUMS.minisig", made, "mia.pub", minisign_public("mia"))

    def ssh(self) -> Vendor:
        key = ssh_key(self.folder.parent, "sam")
        made = ssh_signed(key, self.sums.read_bytes())
        return self._signed("SHA256SUMS.sig", made, "sam.pub", key.with_suffix(".pub").read_bytes())

    def openpgp(self, gpg: Gpg, name: str) -> Vendor:
        made = gpg.sign(self.sums.read_bytes(), name)
        return self._signed("SHA256SUMS.asc", made, f"{name}.asc", gpg.public(name))

    def _signed(self, name: str, content: bytes, pin: str, key: bytes) -> Vendor:
        self.signatures.append(self.folder / name)
        self.signatures[-1].write_bytes(content)
        self.pins.append(self.folder / pin)
        self.pins[-1].write_bytes(key)
        return self


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A repository without releases, made once."""
    made = World(tmp_path_factory.mktemp("founded"))
    for builder in BUILDERS:
        made.person(builder)
    asyncio.run(made.init())
    return made


@pytest.fixture
def world(founded: World, tmp_path: Path) -> World:
    """A copy of it."""
    shutil.copytree(founded.base, tmp_path, dirs_exist_ok=True)
    made = copy.copy(founded)
    made.base = tmp_path
    return made


def run(world: World, *words: str) -> Result:
    home = ["--home", str(world.base / "home"), "release", *words]
    settings = {"KEDGE_RELEASE_REPOSITORY": str(world.folder)}
    return CliRunner().invoke(app, home, env=settings)


def bring_in(world: World, vendor: Vendor, *words: str, archives: str = "") -> Result:
    many = [
        *(word for path in vendor.signatures for word in ("--signature", str(path))),
        *(word for path in vendor.pins for word in ("--pin", str(path))),
        *(word for name in KEEPERS for word in ("--key", str(world.key_file(name)))),
    ]
    return run(
        world, "import", f"daemon@{vendor.version}", "--repository", str(world.folder), "--publish",
        "--archive", archives or f"linux/amd64={vendor.file}", "--sums", str(vendor.sums),
        "--upgrade-from", "*", *many, *words,
    )  # fmt: skip


def name(version: str) -> ReleaseName:
    return ReleaseName(component="daemon", version=version)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_what_a_vendor_signed_becomes_a_release_with_everything_beside_it(
    world: World, tmp_path: Path
) -> None:
    vendor = Vendor(tmp_path, "1.1.0").minisign().ssh()
    done = bring_in(world, vendor, "--needed", "2", "--author", "ada")
    assert done.exit_code == 0, done.output
    assert "1 archive as 2 pinned keys signed; 1 more file of the list" in done.stdout
    reader = world.reader()
    release = reader.read(name("1.1.0"))
    assert release.artifacts[0].digest == hashlib.sha256(vendor.file.read_bytes()).hexdigest()
    assert "ada" in release.authors
    beside = {path.rpartition("/")[2]: path for path in release.vendor}
    assert set(beside) == {
        "vendor-SHA256SUMS", "vendor-SHA256SUMS.minisig", "vendor-SHA256SUMS.sig", "vendor-pin-mia.pub",
        "vendor-pin-sam.pub", "vendor-import.json",
    }  # fmt: skip
    into = tmp_path / "fetched"
    for source in (vendor.sums, *vendor.signatures):
        reader.client(None).fetch(beside[f"vendor-{source.name}"], into)
        assert into.read_bytes() == source.read_bytes()
    reader.client(None).fetch(beside["vendor-import.json"], into)
    assert VendorImport.model_validate_json(into.read_bytes()).ok


def test_stock_tools_verify_what_is_kept_beside_the_release(world: World, tmp_path: Path) -> None:
    with gpg_home() as gpg, gpg_home() as auditor:
        gpg.key("anna")
        vendor = Vendor(tmp_path, "1.1.0").openpgp(gpg, "anna").ssh()
        assert bring_in(world, vendor, "--needed", "2").exit_code == 0
        release = world.reader().read(name("1.1.0"))
        folder = tmp_path / "audit"
        folder.mkdir()
        for path in release.vendor:
            world.reader().client(None).fetch(path, folder / path.rpartition("/")[2])
        auditor.run("--import", str(folder / "vendor-pin-anna.asc"))
        sums, signature = folder / "vendor-SHA256SUMS", folder / "vendor-SHA256SUMS.asc"
        auditor.run("--verify", str(signature), str(sums))
        (folder / "signers").write_text("vendor " + (folder / "vendor-pin-sam.pub").read_text())
        done = subprocess.run(
            ["ssh-keygen", "-Y", "verify", "-f", "signers", "-I", "vendor", "-n", "file", "-s", "vendor-SHA256SUMS.sig"],
            cwd=folder, input=sums.read_bytes(), capture_output=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        sums.write_bytes(sums.read_bytes() + b"\n")
        with pytest.raises(AssertionError, match="BAD signature"):
            auditor.run("--verify", str(signature), str(sums))


def test_an_imported_release_is_judged_again_from_what_is_beside_it(
    world: World, tmp_path: Path
) -> None:
    vendor = Vendor(tmp_path, "1.1.0").minisign()
    assert bring_in(world, vendor).exit_code == 0
    (tmp_path / "daemon.tar.gz").write_bytes(vendor.file.read_bytes())
    envelope = attest(world, "one", vendor.file)
    root = hashlib.sha256((world.folder / "metadata" / "1.root.json").read_bytes()).hexdigest()
    words = ["provenance", "daemon@1.1.0", "--policy", str(policy(world, root=root, agree=1))]
    done = run(world, *words, "--attestation", str(envelope))
    assert done.exit_code == 0, done.output
    assert "what is kept beside it says again: 1 archive as 1 pinned key signed" in done.stdout
    without = run(world, *words, "--json")
    assert without.exit_code == Exit.REFUSED
    found: dict[str, Any] = json.loads(without.stdout)
    assert found["vendor_again"]["rule"] == "accepted"
    assert not found["ok"]


def test_an_attestation_that_is_attached_to_a_release_counts(world: World, tmp_path: Path) -> None:
    vendor = Vendor(tmp_path, "1.1.0").minisign()
    assert bring_in(world, vendor).exit_code == 0
    envelope = attest(world, "two", vendor.file).rename(tmp_path / "provenance-1.json")
    keys = [word for keeper in KEEPERS for word in ("--key", str(world.key_file(keeper)))]
    beside = ["add", "daemon@1.1.0", "--repository", str(world.folder), "--publish", *keys]
    nothing = run(world, *beside)
    assert nothing.exit_code == Exit.BAD_INPUT
    assert "nothing is given to be put beside daemon@1.1.0" in nothing.stderr
    added = run(world, *beside, "--with", str(envelope))
    assert added.exit_code == 0, added.output
    root = hashlib.sha256((world.folder / "metadata" / "1.root.json").read_bytes()).hexdigest()
    done = run(
        world, "provenance", "daemon@1.1.0", "--policy", str(policy(world, root=root, agree=1)), "--json"
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdicts"]["linux/amd64"]["agreed"] == [BUILDERS["two"]]


REFUSED = [
    ("wrong", lambda v: v.minisign(b"other sums"), []),
    ("unknown-key", lambda v: v.minisign().pins[0].write_bytes(minisign_public("mo")), []),
    ("unreadable", lambda v: v.minisign().signatures[0].write_bytes(b"hello"), []),
    ("multiple", lambda v: v.minisign().ssh().signatures[0].write_bytes(minisigned("mia", b"x")), []),
    ("altered", lambda v: v.minisign().file.write_bytes(b"another"), []),
    ("partial", lambda v: v.minisign().file.unlink(), []),
    ("partial", lambda v: v.minisign(), ["--complete"]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "spoil", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_refused_import_is_named_and_changes_nothing(
    world: World, tmp_path: Path, rule: str, spoil: Any, words: list[str]
) -> None:
    vendor = Vendor(tmp_path, "1.1.0")
    spoil(vendor)
    before = tree(world.folder)
    done = bring_in(world, vendor, *words)
    assert done.exit_code == Exit.REFUSED, done.output
    assert f"✗ {rule}: " in done.stdout
    assert tree(world.folder) == before
    as_json = bring_in(world, vendor, *words, "--json")
    assert json.loads(as_json.stdout)["verdict"]["rule"] == rule


def test_a_downgrade_is_refused_until_a_person_says_why(world: World, tmp_path: Path) -> None:
    assert bring_in(world, Vendor(tmp_path, "1.2.0").ssh()).exit_code == 0
    older = Vendor(tmp_path, "1.1.9").minisign()
    before = tree(world.folder)
    done = bring_in(world, older)
    assert done.exit_code == Exit.REFUSED
    assert "downgraded: 1.2.0 was imported before, and 1.1.9 is older" in done.stdout
    assert tree(world.folder) == before
    done = bring_in(world, older, "--in-spite", "a repair for those who stay on 1.1", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdict"]["in_spite"] == "a repair for those who stay on 1.1"
    assert len(past_imports(world.repository, "daemon")) == 2


def test_what_was_revoked_is_not_sold_again_as_something_newer(
    world: World, tmp_path: Path
) -> None:
    vendor = Vendor(tmp_path, "1.1.0").minisign()
    assert bring_in(world, vendor).exit_code == 0
    asyncio.run(
        world.desk.revoke(
            world.folder, name("1.1.0"), world.signers(*KEEPERS), reason="x", by="ada", publish=True
        )
    )
    again = Vendor(tmp_path, "1.2.0")
    again.file.write_bytes(vendor.file.read_bytes())
    digest = hashlib.sha256(vendor.file.read_bytes()).hexdigest()
    again.sums.write_text(f"{digest}  {again.file.name}\n")
    done = bring_in(world, again.minisign())
    assert done.exit_code == Exit.REFUSED, done.output
    assert "downgraded: " in done.stdout
    assert "was imported before, as 1.1.0" in done.stdout.replace("\n", " ")


def test_an_archive_of_another_version_is_taken_in_spite_and_says_so_when_judged_again(
    world: World, tmp_path: Path
) -> None:
    vendor = Vendor(tmp_path, "1.1.0").minisign()
    vendor.version = "1.1.1"
    done = bring_in(world, vendor)
    assert done.exit_code == Exit.REFUSED
    assert "is called by another version than 1.1.1" in done.stdout
    assert bring_in(world, vendor, "--in-spite", "the vendor forgot to rename it").exit_code == 0
    root = hashlib.sha256((world.folder / "metadata" / "1.root.json").read_bytes()).hexdigest()
    words = ["provenance", "daemon@1.1.1", "--policy", str(policy(world, root=root)), "--json"]
    found = json.loads(run(world, *words).stdout)
    assert found["vendor_again"]["rule"] == "accepted"
    assert found["vendor_again"]["in_spite"] == "the vendor forgot to rename it"


def test_the_memory_of_imports_cannot_be_changed_on_the_disk(world: World, tmp_path: Path) -> None:
    assert bring_in(world, Vendor(tmp_path, "1.2.0").ssh()).exit_code == 0
    (kept,) = world.folder.rglob("*.vendor-import.json")
    kept.write_text(kept.read_text().replace("1.2.0", "1.0.0"))
    with pytest.raises(DocumentError, match="was changed here"):
        past_imports(world.repository, "daemon")


def test_the_rest_of_the_document_is_taken_from_an_older_release(
    world: World, tmp_path: Path
) -> None:
    like = tmp_path / "like.yaml"
    like.write_text(
        f"""kind: Release
component: daemon
version: "1.0.0"
reports: "v1.0.0"
artifacts: {{linux/amd64: {{digest: {"a" * 64}, length: 1, source: x}}}}
protocols: {{peer: {{speaks: ["3"]}}}}
configuration: {{removed: [old-flag]}}
upgrade_from: ">=0.9.0"
downgrade_to: ">=0.9.0"
"""
    )
    vendor = Vendor(tmp_path, "1.1.0").minisign()
    done = bring_in(world, vendor, "--like", str(like), "--upgrade-from", ">=1.0.0")
    assert done.exit_code == 0, done.output
    document = json.loads(world.reader().read(name("1.1.0")).document)
    assert document["upgrade_from"] == ">=1.0.0"
    assert document["downgrade_to"] == ">=0.9.0"
    assert document["protocols"]["peer"]["speaks"] == ["3"]
    assert document["configuration"]["removed"] == ["old-flag"]
    assert document["reports"] is None
    assert list(document["artifacts"]) == ["linux/amd64"]


def test_a_version_is_imported_once(world: World, tmp_path: Path) -> None:
    vendor = Vendor(tmp_path, "1.1.0").minisign()
    assert bring_in(world, vendor).exit_code == 0
    done = bring_in(world, vendor)
    assert done.exit_code == Exit.BAD_INPUT
    assert "a version has one content" in done.stderr


BAD_INPUT = [
    ("a name that is none", "no name of a release", ["daemon"]),
    ("a platform that is none", "is no platform", ["daemon@1.1.0", "--archive", "Linux=FILE"]),
    ("an archive without a platform", "--archive linux/amd64=FILE", ["daemon@1.1.0", "--archive", "FILE"]),
    ("no pin that can be read", "cannot be read as a vendor's public key", ["daemon@1.1.0", "--pin", "SUMS"]),
    ("more keys than are pinned", "cannot have signed", ["daemon@1.1.0", "--needed", "3"]),
    ("a reason that is none", "in 1 to 500 characters", ["daemon@1.1.0", "--in-spite", "  "]),
    ("a reason that is a book", "in 1 to 500 characters", ["daemon@1.1.0", "--in-spite", "x" * 501]),
    ("nobody who imports it", "nobody is said", ["daemon@1.1.0", "--key", ""]),
    ("no sums", "cannot be read", ["daemon@1.1.0", "--sums", "nothing"]),
    ("a range that is none", "no release follows", ["daemon@1.1.0", "--upgrade-from", "soon"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "words"), [r[1:] for r in BAD_INPUT], ids=[r[0] for r in BAD_INPUT]
)
def test_bad_input_is_told_in_words(
    world: World, tmp_path: Path, said: str, words: list[str]
) -> None:
    vendor = Vendor(tmp_path, "1.1.0").minisign()
    places = {
        "Linux=FILE": f"Linux={vendor.file}",
        "FILE": str(vendor.file),
        "SUMS": str(vendor.sums),
    }
    first, *more = (places.get(word, word) for word in words)
    options = {
        "--archive": f"linux/amd64={vendor.file}",
        "--sums": str(vendor.sums),
        "--upgrade-from": "*",
        "--signature": str(vendor.signatures[0]),
        "--pin": str(vendor.pins[0]),
        "--key": str(world.key_file("ada")),
        **dict(zip(more[::2], more[1::2], strict=True)),
    }
    done = run(
        world, "import", first, "--repository", str(world.folder), *(w for pair in options.items() if pair[1] for w in pair)
    )  # fmt: skip
    assert done.exit_code == Exit.BAD_INPUT, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_without_its_key_an_import_stays_a_draft(world: World, tmp_path: Path) -> None:
    vendor = Vendor(tmp_path, "1.1.0").minisign()
    done = run(
        world, "import", "daemon@1.1.0", "--repository", str(world.folder), "--archive",
        f"linux/amd64={vendor.file}", "--sums", str(vendor.sums), "--upgrade-from", "*", "--signature",
        str(vendor.signatures[0]), "--pin", str(vendor.pins[0]), "--key", str(world.key_file("ada")),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "lacks 1 signature" in done.stderr
    assert not world.reader().client(None).names()
