"""People to and from OpenSSH's ``allowed_signers`` (ssh-keygen(1), ALLOWED SIGNERS), strictly.

OpenSSH and asyncssh skip what they cannot read and match wildcards; for a policy, a line that silently counts
for nobody or for everybody is the worst of errors. So each line is exactly

    name namespaces="kedge-order" kind base64 [comment]

with one plain name, the namespace among the named ones, no other option, and a key that may sign orders.
Blank lines and lines that begin with ``#`` are left out. Roles do not stand in such a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter, ValidationError

from kedge.model.base import Name
from kedge.model.errors import DocumentError, OrderError
from kedge.model.order import NAMESPACE
from kedge.model.policy import Person
from kedge.model.signed_policy import POLICY_NAMESPACE
from kedge.trust.keys import parse_public_key
from kedge.trust.refusal import quoted

_LINE = re.compile(
    r'(?P<who>[^\s"]+)[ \t]+(?P<options>[a-zA-Z-]+(?:="[^"]*")?(?:,[a-zA-Z-]+(?:="[^"]*")?)*)[ \t]+(?P<key>\S+[ \t]+\S+.*)'
)
_OPTION = re.compile(r'([a-zA-Z-]+)(?:="([^"]*)")?')
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_MAX_CHARS = 1 << 20


def import_signers(
    text: str, roles: Mapping[str, tuple[str, ...]], *, file: str = "allowed_signers"
) -> tuple[Person, ...]:
    """The people of an ``allowed_signers`` text, in the order of their first lines, with the roles given by name.

    Raises ``DocumentError`` with every problem as ``file:line: sentence``: a line that is not of the one form, a
    wildcard, a key that may not sign or stands twice (under one name or two), a person without roles.
    """
    if len(text) > _MAX_CHARS:
        raise DocumentError((f"{file}:1: longer than {_MAX_CHARS} characters",))
    problems: list[str] = []
    keys: dict[str, list[str]] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            who, key, material = _read_line(stripped)
        except OrderError as error:
            problems.append(f"{file}:{number}: {error.message}")
            continue
        if material in seen:
            problems.append(
                f"{file}:{number}: this is the key of line {seen[material]}; a key is of one person, once"
            )
        seen.setdefault(material, number)
        if not roles.get(who):
            problems.append(f"{file}:{number}: {who} was given no role")
        keys.setdefault(who, []).append(key)
    if not keys and not problems:
        problems.append(f"{file}:1: there is no signer in it")
    if problems:
        raise DocumentError(
            tuple(problems),
            next_step=f'each line is: name namespaces="{NAMESPACE}" kind base64 comment',
        )
    return tuple(
        Person(name=name, roles=roles[name], keys=tuple(lines)) for name, lines in keys.items()
    )


def export_signers(people: Iterable[Person]) -> str:
    """The text for ``ssh-keygen -Y verify -f``; raises ``OrderError`` for a key that may not sign orders."""
    return "".join(
        f'{person.name} namespaces="{NAMESPACE},{POLICY_NAMESPACE}" {parse_public_key(line).line}\n'
        for person in people
        for line in person.keys
    )


def _read_line(line: str) -> tuple[str, str, str]:
    """Name, key line and key material; raises ``OrderError`` with what is wrong."""
    matched = _LINE.fullmatch(line)
    if matched is None:
        raise OrderError(f'not of the form: name namespaces="{NAMESPACE}" kind base64 comment')
    try:
        who = _NAME.validate_python(matched["who"])
    except ValidationError as error:
        raise OrderError(
            f"{quoted(matched['who'])} is not one plain name (no list, no wildcard, lower-case)"
        ) from error
    options = [(name.lower(), value) for name, value in _OPTION.findall(matched["options"])]
    if [name for name, _ in options] != ["namespaces"]:
        raise OrderError(
            f'the one option is namespaces="{NAMESPACE}"; {quoted(matched["options"])} cannot be kept'
        )
    spaces = options[0][1].split(",")
    if NAMESPACE not in spaces:
        raise OrderError(f"the namespaces {quoted(options[0][1])} do not name {NAMESPACE}")
    if any(not re.fullmatch(r"[A-Za-z0-9@._-]+", space) for space in spaces):
        raise OrderError(
            f"the namespaces {quoted(options[0][1])} are not all plain names (no wildcard, no '!')"
        )
    key = parse_public_key(matched["key"])
    return who, matched["key"], key.material
