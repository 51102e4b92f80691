"""``allowed_signers``, where a line that is skipped or matches everybody would be the worst of errors."""

from __future__ import annotations

import pytest

from kedge.model.errors import DocumentError
from kedge.model.policy import Person
from kedge.trust.signers_file import export_signers, import_signers
from tests.trust import world

ROLES = {"carol": ("sre",), "bob": ("db-owner",)}
CAROL = world.public("carol")


def test_people_go_out_and_come_back() -> None:
    people = (
        Person(
            name="carol", roles=("sre",), keys=(CAROL, world.public("carol", "ecdsa-sha2-nistp256"))
        ),
        Person(name="bob", roles=("db-owner",), keys=(world.public("bob"),)),
    )
    text = export_signers(people)
    back = import_signers(text, ROLES)
    assert [(p.name, p.roles, len(p.keys)) for p in back] == [
        ("carol", ("sre",), 2),
        ("bob", ("db-owner",), 1),
    ]
    assert export_signers(back) == text


def test_comments_blank_lines_and_further_namespaces_are_read() -> None:
    text = f'# people\n\ncarol namespaces="git,kedge-order" {CAROL} laptop of carol\n'
    assert import_signers(text, ROLES)[0].name == "carol"


LINES: list[tuple[str, str, str]] = [
    ("no namespace", f"carol {CAROL}", "not of the form"),
    ("another namespace", f'carol namespaces="git" {CAROL}', "do not name kedge-order"),
    ("a wildcard namespace", f'carol namespaces="*" {CAROL}', "do not name kedge-order"),
    ("a wildcard beside the namespace", f'carol namespaces="kedge-order,*" {CAROL}', "not all plain"),
    ("a namespace taken out again", f'carol namespaces="kedge-order,!kedge-order" {CAROL}', "not all plain"),
    ("everybody", f'* namespaces="kedge-order" {CAROL}', "not one plain name"),
    ("everybody of a domain", f'*@example.org namespaces="kedge-order" {CAROL}', "not one plain name"),
    ("two people", f'carol,bob namespaces="kedge-order" {CAROL}', "not one plain name"),
    ("upper case", f'Carol namespaces="kedge-order" {CAROL}', "not one plain name"),
    ("a certificate authority", f'carol cert-authority,namespaces="kedge-order" {CAROL}', "the one option"),
    ("a validity that would be lost", f'carol namespaces="kedge-order",valid-before="20300101" {CAROL}', "the one option"),
    ("namespaces twice", f'carol namespaces="kedge-order",namespaces="*" {CAROL}', "the one option"),
    ("a key that is not one", 'carol namespaces="kedge-order" ssh-ed25519 AAAA', "cannot be read"),
    ("no key", 'carol namespaces="kedge-order"', "not of the form"),
    ("nothing but a word", "carol", "not of the form"),
    ("somebody without a role", f'erin namespaces="kedge-order" {CAROL}', "no role"),
    ("a carriage return inside", f'carol namespaces="kedge-order" {CAROL}\rbob', "not an OpenSSH|not of the form"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"), [row[1:] for row in LINES], ids=[row[0] for row in LINES]
)
def test_a_line_that_is_not_of_the_one_form_is_refused(line: str, said: str) -> None:
    with pytest.raises(DocumentError, match=said) as error:
        import_signers(f"# head\n{line}\n", ROLES)
    assert error.value.problems[0].startswith("allowed_signers:2: ")


def test_one_key_under_two_names_is_refused_at_its_second_line() -> None:
    text = f'carol namespaces="kedge-order" {CAROL}\nbob namespaces="kedge-order" {CAROL} same\n'
    with pytest.raises(DocumentError, match="allowed_signers:2: this is the key of line 1"):
        import_signers(text, ROLES)


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(DocumentError) as error:
        import_signers("x\n\ny\n", ROLES)
    assert len(error.value.problems) == 2


def test_a_file_without_signers_is_refused() -> None:
    with pytest.raises(DocumentError, match="no signer"):
        import_signers("# nobody\n", ROLES)
