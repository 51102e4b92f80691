"""``kedge release provenance`` and ``attest``: as people and builders use them, and with other tools on the other side."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.exits import Exit
from cli.main import app
from tests.releases.world import World, archive

DOCUMENT = (Path(__file__).parents[2] / "docs" / "provenance.md").read_text()
BUILDERS = {"one": "https://one.example.org/builder", "two": "https://two.example.net/builder"}
SOURCE = "git+https://git.example.org/daemon@refs/tags/v1.1.0"
BUILD_TYPE = "https://slsa.example.org/make/v1"


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    for builder in BUILDERS:
        made.person(builder)
    return made


def run(world: World, *words: str) -> Result:
    return CliRunner().invoke(app, ["--home", str(world.base / "home"), "release", *words])


def released(world: World) -> Path:
    """A Release document whose archive lies beside it."""
    content = archive("1.1.0")
    (world.base / "daemon.tar.gz").write_bytes(content)
    path = world.base / "daemon.yaml"
    path.write_text(
        f"""kind: Release
component: daemon
version: "1.1.0"
artifacts:
  linux/amd64:
    digest: {hashlib.sha256(content).hexdigest()}
    length: {len(content)}
    source: daemon.tar.gz
upgrade_from: "*"
"""
    )
    return path


def policy(world: World, *, root: str = "0" * 64, agree: int = 2, provenance: bool = True) -> Path:
    keys = {
        name: world.key_file(name).with_suffix(".pub").read_text().strip() for name in world.keys
    }
    said = f"""kind: Policy
name: prod
environment: prod
people: [{{name: ada, roles: [operator], keys: ["{keys["ada"]}"]}}]
may: {{start: [operator]}}
releases:
  root: "{root}"
"""
    if provenance:
        said += f"""  provenance:
    builders:
      - {{id: "{BUILDERS["one"]}", keys: ["{keys["one"]}"]}}
      - {{id: "{BUILDERS["two"]}", keys: ["{keys["two"]}"]}}
    sources: ["git+https://git.example.org/daemon@refs/tags/*"]
    build_types: ["{BUILD_TYPE}"]
    builders_agree: {agree}
    max_age: 1d
"""
    path = world.base / "policy.yaml"
    path.write_text(said)
    return path


def attest(world: World, builder: str, *files: Path, **claims: str) -> Path:
    output = world.base / f"{builder}.json"
    said = {"builder": BUILDERS[builder], "source": SOURCE, "build-type": BUILD_TYPE, **claims}
    done = run(
        world,
        "attest",
        *map(str, files or (world.base / "daemon.tar.gz",)),
        *(word for name, value in said.items() for word in (f"--{name}", value)),
        "--key",
        str(world.key_file(builder)),
        "-o",
        str(output),
    )
    assert done.exit_code == 0, done.output
    return output


def test_two_builders_sign_and_the_policy_is_content(world: World) -> None:
    document = released(world)
    given = [str(attest(world, name)) for name in BUILDERS]
    words = ["provenance", str(document), "--policy", str(policy(world))]
    done = run(world, *words, "--attestation", given[0], "--attestation", given[1])
    assert done.exit_code == 0, done.output
    assert "2 independent builders arrived" in done.stdout
    assert f"one.json: {BUILDERS['one']} built it from {SOURCE}" in done.stdout
    as_json = run(world, *words, "--attestation", given[0], "--attestation", given[1], "--json")
    found: dict[str, Any] = json.loads(as_json.stdout)
    assert found["ok"]
    assert found["verdicts"]["linux/amd64"]["agreed"] == list(BUILDERS.values())


def test_one_builder_is_not_enough_and_the_missing_one_is_named(world: World) -> None:
    document = released(world)
    one = attest(world, "one")
    done = run(
        world, "provenance", str(document), "--policy", str(policy(world)),
        "--attestation", str(one), "--attestation", str(one),
    )  # fmt: skip
    assert done.exit_code == Exit.REFUSED
    assert "one.json [repeated]" in done.stdout
    assert f"ask {BUILDERS['two']}" in done.stderr


def test_every_envelope_that_does_not_count_says_why(world: World) -> None:
    document = released(world)
    other = world.base / "other.tar.gz"
    other.write_bytes(b"other")
    strange = attest(world, "two", other)
    nothing = world.base / "nothing.json"
    nothing.write_bytes(b"\xff")
    wrong = attest(world, "one", **{"build-type": "https://slsa.example.org/by-hand/v1"})
    done = run(
        world, "provenance", str(document), "--policy", str(policy(world)), "--attestation", str(strange),
        "--attestation", str(nothing), "--attestation", str(wrong), "--json",
    )  # fmt: skip
    assert done.exit_code == Exit.REFUSED
    envelopes = json.loads(done.stdout)["verdicts"]["linux/amd64"]["envelopes"]
    assert [one["rule"] for one in envelopes] == ["subject", "unreadable", "build-type"]


WRONG: list[tuple[str, list[str], Exit, str]] = [
    ("a policy that asks for nothing", ["provenance", "DOCUMENT", "--policy", "BARE"], Exit.BAD_INPUT, "asks for no provenance"),
    ("no such release", ["provenance", "nothing.yaml", "--policy", "POLICY"], Exit.BAD_INPUT, "cannot be read"),
    ("no such envelope", ["provenance", "DOCUMENT", "--policy", "POLICY", "--attestation", "x.json"], Exit.BAD_INPUT, "cannot be read"),
    ("no repository", ["provenance", "daemon@1.1.0", "--policy", "POLICY"], Exit.NOT_FOUND, "no release repository"),
    ("a trusted root that is not the policy's", ["provenance", "DOCUMENT", "--policy", "POLICY", "--trusted-root", "DOCUMENT"], Exit.BAD_INPUT, "trusted root"),
    ("a claim that is no address", ["attest", "ARCHIVE", "--builder", "me", "--source", "x:y", "--build-type", "x:y", "--key", "KEY", "-o", "OUT"], Exit.BAD_INPUT, "no such build"),
    ("a time that is none", ["attest", "ARCHIVE", "--builder", "x:y", "--source", "x:y", "--build-type", "x:y", "--finished", "today", "--key", "KEY", "-o", "OUT"], Exit.BAD_INPUT, "finished"),
    ("a build that ends before it begins", ["attest", "ARCHIVE", "--builder", "x:y", "--source", "x:y", "--build-type", "x:y", "--started", "2999-01-01T00:00:00Z", "--key", "KEY", "-o", "OUT"], Exit.BAD_INPUT, "no build begins"),
    ("no key", ["attest", "ARCHIVE", "--builder", "x:y", "--source", "x:y", "--build-type", "x:y", "-o", "OUT"], Exit.BAD_INPUT, "one key"),
    ("nothing that was built", ["attest", "no.tar", "--builder", "x:y", "--source", "x:y", "--build-type", "x:y", "--key", "KEY", "-o", "OUT"], Exit.BAD_INPUT, "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "said"), [r[1:] for r in WRONG], ids=[r[0] for r in WRONG]
)
def test_bad_input_is_told_in_words(world: World, words: list[str], code: Exit, said: str) -> None:
    document = str(released(world))
    bare = policy(world, provenance=False).rename(world.base / "bare.yaml")
    places = {
        "DOCUMENT": document, "BARE": str(bare), "POLICY": str(policy(world)), "OUT": str(world.base / "out"),
        "ARCHIVE": str(world.base / "daemon.tar.gz"), "KEY": str(world.key_file("one")),
    }  # fmt: skip
    done = run(world, *(places.get(word, word) for word in words))
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    "kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa"]
)
def test_a_builder_may_have_any_kind_of_key(world: World, kind: str) -> None:
    document = released(world)
    world.person("one", kind)
    one = attest(world, "one")
    words = ["provenance", str(document), "--policy", str(policy(world, agree=1))]
    assert run(world, *words, "--attestation", str(one)).exit_code == 0


# -- the recipes of the documentation --------------------------------------------------------------


def recipe(language: str, word: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return str(found)


def workshop(world: World, kind: str = "ssh-ed25519") -> Path:
    """A folder as the documentation has it: what was built, the envelope, the builder's public key in two forms."""
    released(world)
    world.person("one", kind)
    folder = world.base / "workshop"
    folder.mkdir()
    (folder / "etcd.tar.gz").write_bytes((world.base / "daemon.tar.gz").read_bytes())
    attest(world, "one", folder / "etcd.tar.gz").rename(folder / "provenance-1.json")
    line = world.key_file("one").with_suffix(".pub").read_bytes()
    (folder / "builder.pub").write_bytes(line)
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_public_key,
    )

    key = load_ssh_public_key(line)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "builder.pem").write_bytes(pem)
    return folder


def shell(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip


def spoil(folder: Path, what: str) -> None:
    if what == "archive":
        (folder / "etcd.tar.gz").write_bytes(b"another")
        return
    text = (folder / "provenance-1.json").read_text()
    made = json.loads(text)
    given = made["payload"] if what == "payload" else made["signatures"][0]["sig"]
    at = len(given) // 2
    other = given[:at] + ("A" if given[at] != "A" else "B") + given[at + 1 :]
    (folder / "provenance-1.json").write_text(text.replace(given, other))


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
@pytest.mark.parametrize("spoilt", ["", "archive", "payload", "signature"])
def test_openssl_alone_verifies_an_envelope_by_the_documented_recipe(
    world: World, kind: str, spoilt: str
) -> None:
    folder = workshop(world, kind)
    text = recipe("sh", "openssl pkeyutl")
    if kind != "ssh-ed25519":
        (other,) = re.findall(r"`(openssl dgst [^`]+)`", DOCUMENT)
        text = re.sub(r"openssl pkeyutl .*", other, text)
    if spoilt:
        spoil(folder, spoilt)
    done = shell(folder, text)
    if spoilt:
        assert done.returncode != 0
        assert "it is about this file" not in done.stdout
    else:
        assert done.returncode == 0, done.stderr
        assert "it is about this file" in done.stdout


@pytest.mark.parametrize("spoilt", ["", "archive", "payload", "signature"])
def test_cryptography_alone_verifies_an_envelope_by_the_documented_recipe(
    world: World, spoilt: str
) -> None:
    folder = workshop(world)
    if spoilt:
        spoil(folder, spoilt)
    done = subprocess.run(
        [sys.executable, "-c", recipe("python", "load_ssh_public_key")],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode == 0) == (not spoilt), done.stderr


def test_the_documentation_names_every_rule() -> None:
    from typing import get_args

    from kedge.model.provenance import ProvenanceRule
    from kedge.model.upstream import ImportRule

    rows = [line.split("|")[1] for line in DOCUMENT.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    assert named == {*get_args(ProvenanceRule), *get_args(ImportRule)}
