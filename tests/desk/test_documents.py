"""Document files: read safely, problems with their places, references followed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from desk.documents import compile_files, lint, read_bytes, read_documents, read_policy
from kedge.model.errors import DocumentError
from kedge.plan.digest import plan_digest
from kedge.trust.policies import policy_text
from tests.plan.samples import AFTER, FLEET, POLICY, RUNBOOK, replaced


def four(folder: Path) -> tuple[Path, Path, Path, Path]:
    return (
        folder / "etcd.yaml",
        folder / "etcd-3.5.1.yaml",
        folder / "runbook.yaml",
        folder / "policy.yaml",
    )


def test_archives_are_found_relative_to_their_document(folder: Path) -> None:
    read = read_documents(*four(folder))
    assert read.before.version == "3.5.0"
    assert [artifact.source for artifact in read.after.artifacts.values()] == [
        str(folder / "etcd-3.5.1.tar.gz")
    ]


def test_an_address_stays_as_it_is(folder: Path) -> None:
    path = folder / "etcd-3.5.1.yaml"
    path.write_text(
        replaced(AFTER, "source: etcd-3.5.1.tar.gz", "source: https://example.org/a.tar.gz")
    )
    (artifact,) = read_documents(*four(folder)).after.artifacts.values()
    assert artifact.source == "https://example.org/a.tar.gz"


def test_where_documents_and_archives_lie_does_not_change_the_plan(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for file in folder.iterdir():
        (elsewhere / file.name).write_text(
            file.read_text().replace("source: etcd-3", "source: archives/etcd-3")
        )
    assert plan_digest(compile_files(*four(elsewhere))) == plan_digest(compile_files(*four(folder)))


def test_problems_of_all_files_come_together(folder: Path) -> None:
    (folder / "policy.yaml").write_text(replaced(POLICY, "environment: demo\n", ""))
    (folder / "runbook.yaml").write_text(
        replaced(RUNBOOK, "max_unavailable: 1", "max_unavailable: no")
    )
    (folder / "etcd-3.5.0.yaml").unlink()
    with pytest.raises(DocumentError) as caught:
        read_documents(*four(folder))
    said = "\n".join(caught.value.problems)
    assert "policy.yaml:1:1: environment: is missing" in said
    line = RUNBOOK[: RUNBOOK.index("max_unavailable: 1")].count("\n") + 1
    assert f"runbook.yaml:{line}:20: waves.max_unavailable: no is a word for false" in said
    assert "etcd.yaml:4:10: release: there is no file" in said


def test_conflicts_between_files_have_the_place_in_their_file(folder: Path) -> None:
    (folder / "policy.yaml").write_text(replaced(POLICY, "environment: demo", "environment: prod"))
    with pytest.raises(DocumentError) as caught:
        compile_files(*four(folder))
    assert caught.value.problems == (
        f"{folder}/policy.yaml:3:14: environment: is for prod, and the fleet etcd is in demo; name the policy of that environment",
    )


def test_another_baseline_may_be_named(folder: Path) -> None:
    fleet, _, runbook, policy = four(folder)
    (folder / "etcd.yaml").write_text(
        replaced(FLEET, "release: etcd-3.5.0.yaml", "release: gone.yaml")
    )
    before = folder / "etcd-3.5.0.yaml"
    made = compile_files(fleet, folder / "etcd-3.5.1.yaml", runbook, policy, before_path=before)
    assert made.before.version == "3.5.0"


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(DocumentError) as caught:
            read_bytes(path)
        assert "is not a regular file" in caught.value.problems[0]


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    assert lint([tmp_path / "nope.yaml"]) == (
        f"{tmp_path}/nope.yaml:1:1: cannot be read: No such file or directory",
    )
    assert "cannot be read" in lint([tmp_path / "a\0b.yaml"])[0]


def test_an_absolute_release_is_refused(folder: Path) -> None:
    (folder / "etcd.yaml").write_text(
        replaced(FLEET, "release: etcd-3.5.0.yaml", "release: /etc/passwd")
    )
    assert lint([folder / "etcd.yaml"]) == (
        f"{folder}/etcd.yaml:4:10: release: must be a path relative to this document, or a signed release: etcd@3.5.1",
    )


def test_lint_finds_rings_between_fleets(folder: Path) -> None:
    for name, needs in (("a", "b"), ("b", "a")):
        text = (
            replaced(
                replaced(FLEET, "name: etcd\n", f"name: {name}\n"), "/srv/kedge", f"/srv/{name}"
            )
            + f"dependencies: [{{fleet: {needs}}}]\n"
        )
        if name == "b":
            text = text.replace('"237', '"247').replace('"238', '"248')
        (folder / f"{name}.yaml").write_text(text)
    found = lint([folder / "a.yaml", folder / "b.yaml"])
    assert found == (
        f"{folder}/a.yaml:29:15: dependencies: the fleets need each other in a ring: a → b → a",
    )


def test_lint_of_sound_documents_says_nothing(folder: Path) -> None:
    assert lint(sorted(folder.glob("*.yaml"))) == ()


def test_a_policy_that_somebody_wrote_as_json_is_a_document(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    written = {
        "kind": "Policy", "name": "mine", "environment": "home", "max_lifetime": "30m", "may": {"start": ["all"]},
        "people": [{"name": "ada", "roles": ["all"], "keys": [
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v ada"
        ]}],
    }  # fmt: skip
    file.write_text(json.dumps(written, indent=2))
    policy = read_policy(file).value
    assert (policy.name, policy.max_lifetime) == ("mine", 1800)
    file.write_text(policy_text(policy))
    assert read_policy(file).value == policy
    file.write_text(json.dumps({**written, "max_lifetime": 30}))
    with pytest.raises(DocumentError, match="a duration has a unit"):
        read_policy(file)


def test_lint_finds_fleets_that_share_a_root(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text(replaced(FLEET, "name: etcd\n", f"name: {name}\n"))
    found = lint([folder / "a.yaml", folder / "b.yaml"])
    assert found[0] == (
        f"{folder}/b.yaml:7:7: root: /srv/kedge/etcd-1 on this machine is a root of the fleet a already"
    )


def test_lint_says_all_about_a_fleet_whose_release_is_not_there(folder: Path) -> None:
    text = replaced(FLEET, "release: ", "release: gone/")
    (folder / "a.yaml").write_text(text.replace("{node.labels.client_port}", "{node.labels.nope}"))
    found = lint([folder / "a.yaml"])
    assert any("there is no file" in one for one in found)
    assert any("node etcd-1 has no label nope" in one for one in found), found


def test_lint_finds_a_placeholder_in_a_var_of_a_runbook(folder: Path) -> None:
    text = replaced(RUNBOOK, "\nvars:\n", '\nvars:\n  at: "{node.address}:80"\n')
    (folder / "runbook.yaml").write_text(text)
    (found,) = lint([folder / "runbook.yaml"])
    assert "vars.at: {node.address} is not filled in inside a var; write it where" in found
