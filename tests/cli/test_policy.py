"""``kedge policy``: from a first pin to a signed change, with stock ssh-keygen on the other side."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.exits import Exit
from cli.main import app
from desk.documents import read_policy

POLICY = """\
kind: Policy
name: prod
environment: prod
change: {{threshold: 2, roles: [sre]}}
people:
  - {{name: ada, roles: [sre, operator], keys: ["{ada}"]}}
  - {{name: ben, roles: [sre, on-call], keys: ["{ben}"]}}
may: {{start: [operator], approve: [sre], reject: [sre], rollback: [on-call], abort: [operator]}}
break_glass: {{roles: [operator], verbs: [rollback], review: {{roles: [on-call]}}}}
ticket: {{pattern: "CHG-[0-9]+", verbs: [start]}}
risk: {{irreversible: {{may: {{start: [on-call]}}}}}}
"""


@dataclass
class Place:
    """A home, two people's keys, and a policy that takes two of them to change."""

    folder: Path

    def run(self, *words: str, code: Exit = Exit.DONE) -> str:
        shown = CliRunner().invoke(app, ["--home", str(self.folder / "home"), "policy", *words])
        assert shown.exit_code == code, shown.output
        return shown.output

    def json(self, *words: str, code: Exit = Exit.DONE) -> Any:
        shown = CliRunner().invoke(
            app, ["--home", str(self.folder / "home"), "policy", *words, "--json"]
        )
        assert shown.exit_code == code, shown.output
        return json.loads(shown.stdout)

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, name: str, *more: str) -> str:
        keys = {who: (self.folder / f"{who}.pub").read_text().strip() for who in ("ada", "ben")}
        (self.folder / name).write_text(
            POLICY.format(**keys) + "".join(f"{line}\n" for line in more)
        )
        return self.file(name)


def ssh_keygen(*words: str) -> None:
    done = subprocess.run(["ssh-keygen", "-q", *words], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for who in ("ada", "ben"):
        ssh_keygen("-t", "ed25519", "-N", "", "-C", who, "-f", str(tmp_path / who))
    made = Place(tmp_path)
    made.write("policy.yaml")
    return made


def test_a_change_is_signed_by_two_one_of_them_with_ssh_keygen_and_pinned(place: Place) -> None:
    first = place.json("pin", "db", place.file("policy.yaml"))
    assert (first["kept"]["by"], first["version"]) == ("first", 1)
    changed = place.write("next.yaml", "max_lifetime: 2h")

    refused = place.json("pin", "db", changed, code=Exit.BAD_INPUT)
    assert "does not follow" in refused["error"]["message"]
    assert "kedge policy sign" in refused["error"]["next"]

    signed = place.file("next.signed.json")
    by_ada = place.json("sign", changed, "--for", "db", "--key", place.file("ada"), "-o", signed)
    assert (by_ada["version"], by_ada["verdict"]["missing"]) == (2, 1)
    assert read_policy(Path(signed)).value.version == 2, "plans are made with it"
    assert "lacks 1" in place.json("pin", "db", signed, code=Exit.BAD_INPUT)["error"]["message"]

    text = place.file("text.json")
    place.run("sign", changed, "--for", "db", "-o", text)
    ssh_keygen("-Y", "sign", "-n", "kedge-policy", "-f", place.file("ben"), text)
    done = place.json("pin", "db", signed, "--signature", f"{text}.sig")
    assert (done["kept"]["by"], done["version"]) == ("signed", 2)

    versions = place.json("show", "db")
    assert [one["by"] for one in versions["versions"]] == ["first", "signed"]
    assert versions["chain"]["ok"]
    assert [said.split(" (")[0] for said in versions["versions"][1]["signatures"]] == [
        "ada signs",
        "ben signs",
    ]
    assert place.run("show", "db", "--canonical") == Path(text).read_text()
    # No way leads back, but for who has the machine; and that stays visible.
    assert "the next one is 3" in place.run(
        "pin", "db", place.file("policy.yaml"), code=Exit.BAD_INPUT
    )
    place.run("pin", "db", place.file("policy.yaml"), "--as-owner")
    assert place.json("show", "db")["chain"]["owners"] == [3]


def test_a_signature_for_something_else_does_not_change_a_policy(place: Place) -> None:
    place.run("pin", "db", place.file("policy.yaml"))
    changed, text = place.write("next.yaml", "max_lifetime: 2h"), place.file("text.json")
    place.run("sign", changed, "--for", "db", "-o", text)
    for who in ("ada", "ben"):
        ssh_keygen("-Y", "sign", "-n", "kedge-order", "-f", place.file(who), text)
        Path(f"{text}.sig").rename(place.file(f"{who}.sig"))
    said = place.json(
        "pin", "db", text, "--signature", place.file("ada.sig"), "--signature", place.file("ben.sig"),
        code=Exit.BAD_INPUT,
    )  # fmt: skip
    assert "namespace" in said["error"]["message"]


def test_a_policy_that_nobody_can_change_says_so_and_what_to_do(place: Place) -> None:
    text = (
        Path(place.file("policy.yaml"))
        .read_text()
        .replace("change: {threshold: 2, roles: [sre]}\n", "")
    )
    Path(place.file("alone.yaml")).write_text(text)
    place.run("pin", "db", place.file("alone.yaml"))
    said = place.json(
        "pin", "db", place.write("next.yaml", "max_lifetime: 2h"), code=Exit.BAD_INPUT
    )
    assert "--as-owner" in said["error"]["next"] + said["error"]["message"]
    assert any(
        "nobody can change" in one["said"]
        for one in place.json("lint", place.file("alone.yaml"))["advice"]
    )


def test_a_policy_is_explained_and_says_who_can(place: Place) -> None:
    file = place.file("policy.yaml")
    explained = place.json("explain", file)
    said = [line for part in explained["explanation"] for line in part["said"]]
    assert any("by breaking the glass ada" in line for line in said)
    assert any("CHG-[0-9]+" in line for line in said)
    who = place.json("who-can", "rollback", file)["who"]
    assert [(one["person"], one["glass"]) for one in who] == [("ben", False), ("ada", True)]
    assert [one["person"] for one in place.json("who-can", "start", file)["who"]] == []
    routine = place.json("who-can", "start", file, "--risk", "routine")["who"]
    assert [one["person"] for one in routine] == ["ada"]
    assert any("CHG-" in said for said in routine[0]["conditions"])
    assert place.json("who-can", "dance", file, code=Exit.BAD_INPUT)["error"]["next"].startswith(
        "one of"
    )
    assert "no class" in place.run("who-can", "start", file, "--risk", "big", code=Exit.BAD_INPUT)


def test_what_is_wider_is_told_apart_from_what_is_narrower(place: Place) -> None:
    gone = "SHA256:" + "A" * 43
    other = place.write("other.yaml", "max_lifetime: 2h", f'revoked: {{keys: ["{gone}"]}}')
    text = Path(other).read_text().replace("may: {start: [operator]", "may: {start: [on-call]")
    Path(other).write_text(text)
    found = place.json("diff", place.file("policy.yaml"), other)
    effects = {
        (one["where"], one["said"].split(" →")[0]): one["effect"] for one in found["differences"]
    }
    assert effects["who can start", "ben can start"] == "wider"
    assert effects["who can start", "ada can start no more"] == "narrower"
    assert effects["max_lifetime", "3600.0"] == "wider"
    assert effects[f"revoked.keys.{gone}", "nothing"] == "narrower"
    assert not found["change"]["ok"]
    assert "nothing is otherwise" in place.run("diff", other, other)


def test_mistakes_have_their_place_and_thoughts_do_not_fail(place: Place) -> None:
    bad = place.write("bad.yaml", "hardware: {only_for: {dance: required}}")
    shown = place.json("lint", bad, place.file("policy.yaml"), code=Exit.BAD_INPUT)
    assert any("bad.yaml:" in one and "dance" in one for one in shown["error"]["problems"])
    assert place.json("lint", place.file("policy.yaml"))["advice"]


def test_people_come_from_openssh_and_go_back(place: Place, tmp_path: Path) -> None:
    exported = place.run("signers", place.file("policy.yaml"))
    signers = tmp_path / "signers"
    signers.write_text(exported)
    found = place.json("people", str(signers), "--role", "ada=sre,operator", "--role", "ben=sre")
    assert [(one["name"], one["roles"]) for one in found["people"]] == [
        ("ada", ["sre", "operator"]),
        ("ben", ["sre"]),
    ]
    assert '- name: "ada"' in place.run(
        "people", str(signers), "--role", "ada=sre", "--role", "ben=sre"
    )
    assert "was given no role" in place.run("people", str(signers), code=Exit.BAD_INPUT)
    text = tmp_path / "file"
    text.write_text("x")
    ssh_keygen("-Y", "sign", "-n", "kedge-order", "-f", place.file("ada"), str(text))
    verified = subprocess.run(
        ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "ada", "-n", "kedge-order", "-s", f"{text}.sig"],
        input=b"x", capture_output=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr


def test_people_whose_names_mean_something_else_in_yaml_are_people_still(place: Place) -> None:
    signers = Path(place.file("signers"))
    keys = [Path(place.file(f"{who}.pub")).read_text().strip() for who in ("ada", "ben")]
    signers.write_text(
        "".join(
            f'{n} namespaces="kedge-order" {k}\n' for n, k in zip(("no", "007"), keys, strict=True)
        )
    )
    people = place.run("people", str(signers), "--role", "no=on,true", "--role", "007=1e3")
    file = Path(place.file("odd.yaml"))
    file.write_text(f'kind: Policy\nname: p\nenvironment: e\n{people}may: {{start: ["on"]}}\n')
    policy = read_policy(file).value
    assert [(one.name, one.roles) for one in policy.people] == [
        ("no", ("on", "true")),
        ("007", ("1e3",)),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"kind":"SignedPolicy","format":1,"policy":"{}","signatures":[]}',
        "[" * 5000,
        "\xff",
        "",
    ],
)
def test_a_file_that_is_no_policy_is_told_in_words(place: Place, content: str) -> None:
    Path(place.file("odd.json")).write_bytes(content.encode("latin-1"))
    for words in (("pin", "db"), ("sign",), ("lint",), ("explain",)):
        said = place.json(*words, place.file("odd.json"), code=Exit.BAD_INPUT)
        assert said["error"]["message"]
