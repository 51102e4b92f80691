"""Edits by hand: what a person changed in a configuration since kedge wrote it, shown as a diff without secrets.

An edit is reported once with its digest. It is overwritten only when a person, who saw that diff, said to try again:
the operation then comes with a higher `anew`, and the edit must be the same still.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import stat
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional

from kedge.host import baseline, configs, files, observe, places, secret
from kedge.host.errors import EditedByHand
from kedge.host.layout import Node

if TYPE_CHECKING:
    from kedge.host.context import Context

MAX_NAMES = 16
MAX_LINES = 60
MAX_LINE = 200
MAX_DIFF = 3000
MAX_TEXT = 256 << 10
HIDDEN = "[a line beside a secret: not shown]"
# What looks like a secret that a person typed in: its value is not shown.
TYPED = re.compile(
    r"(?i)([\w.-]*(?:passw|passphrase|secret|token|credential|private|api[_-]?key|access[_-]?key)[\w.-]*"
    r"[\"']?\s*[:=]\s*).+"
)


class Edit(NamedTuple):
    """What differs in a generation: names of files, and the digest of what is there now."""

    generation: str
    names: List[str]
    digest: str
    moved: str = ""
    """Where `config/current` points, when that is what was changed."""


def of(node: Node, generation: str) -> Optional[Edit]:
    """The edit of a generation, or None: as kedge wrote it, not there, or written before kedge kept that."""
    written = configs.recorded(node, generation)
    top = node.config(generation)
    status = places.status(top)
    if written is None or status is None:
        return None
    if not stat.S_ISDIR(status.st_mode):
        return Edit(generation, [generation], _digest({"": str(status.st_ino).encode()}))
    content, mixed = configs.content_of(written)
    wanted = {**content, **configs.links(generation, mixed)}
    there = configs.found(node, generation, mixed)
    names = {name for name in {*wanted, *there} if wanted.get(name) != there.get(name)}
    for name in mixed:
        if not secret.is_as_written(node, generation, name):
            names.add(name)
            there[name] = files.read_bytes(secret.folder(node, generation) / name) or b""
    if not names:
        return None
    return Edit(generation, sorted(names), _digest({name: there.get(name) for name in names}))


def of_current(node: Node) -> Optional[Edit]:
    """The edit of the configuration that the node runs with, or of the link to it."""
    one, kept = observe.running(node)
    current, ran = observe.current_config(node), kept.get("generation")
    if one is not None and isinstance(ran, str) and current != ran:
        target = files.link_target(node.config_current) or "no link"
        return Edit(ran, ["current"], _digest({"current": target.encode()}), moved=target)
    return of(node, current) if current is not None else None


def _digest(content: Dict[str, Optional[bytes]]) -> str:
    found = hashlib.sha256()
    for name, text in sorted(content.items()):
        found.update(f"{name}\0{-1 if text is None else len(text)}\0".encode())
        found.update(text or b"")
    return found.hexdigest()


def settle(ctx: Context, edit: Edit, anew: int) -> Optional[str]:
    """Overwrite an edit that a person has seen and said to overwrite; EditedByHand when nobody did.

    Gives where what was there is kept, or None when only the link was changed: `configure` sets it.
    """
    node = ctx.node
    kept = files.read_json(node.edited)
    seen = kept if isinstance(kept, dict) else {}
    if (
        seen.get("digest") == edit.digest
        and seen.get("generation") == edit.generation
        and seen.get("run") == ctx.run
        and anew > seen.get("anew", anew)
    ):
        if edit.moved:
            return None
        ctx.acting()
        with ctx.fence.act():
            configs.write_again(ctx, edit.generation)
        return str(node.edits)
    fault = _fault(ctx, edit)
    note = {"digest": edit.digest, "generation": edit.generation, "run": ctx.run, "anew": anew}
    if seen != note:
        with ctx.fence.act():
            files.write_atomic(node.edited, files.to_json(note))
    raise fault


def _fault(ctx: Context, edit: Edit) -> EditedByHand:
    names = [shown(name) for name in edit.names]
    if edit.moved:
        said = f"config/current was changed by hand: it points to {shown(edit.moved)}, kedge had it point to {edit.generation[:12]}"
        return EditedByHand(f"{said}; {_UNTOUCHED}", {"files": names, "diff": []})
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    said = (
        f"the configuration was changed by hand since kedge wrote it: {', '.join(names[:4])}{more}"
    )
    detail = {
        "generation": edit.generation,
        "files": names[:MAX_NAMES],
        "diff": diff(ctx, edit),
    }
    return EditedByHand(f"{said}; {_UNTOUCHED}", detail)


_UNTOUCHED = "the daemon was not stopped"


def diff(ctx: Context, edit: Edit) -> List[str]:
    """The edit as lines of a diff from what kedge wrote (`-`) to what is there (`+`): bounded, without secrets."""
    node = ctx.node
    written = configs.recorded(node, edit.generation) or {"files": {}, "service": {}, "secrets": {}}
    content, mixed = configs.content_of(written)
    whole = places.is_directory(node.config(edit.generation))
    there = configs.found(node, edit.generation, mixed) if whole else {}
    lines: List[str] = []
    for name in edit.names[:MAX_NAMES]:
        lines.append(f"--- {shown(name)}")
        if name in mixed or name == secret.RECIPE:
            lines += _with_secrets(mixed.get(name), _now(node, edit.generation, name, there))
        elif name == configs.SERVICE:
            lines += _plain(_spread(content[name]), _spread(there.get(name)))
        else:
            lines += _plain(content.get(name), there.get(name))
    told = [ctx.told.text(line) for line in lines]
    size = 0
    kept: List[str] = []
    for line in told:
        size += len(line) + 6
        if len(kept) >= MAX_LINES or size > MAX_DIFF:
            return [*kept, f"… {len(told) - len(kept)} more lines"]
        kept.append(line)
    return kept


def _plain(old: Optional[bytes], new: Optional[bytes]) -> List[str]:
    if new is None:
        return ["is not there any more"]
    before, now = _lines(old or b""), _lines(new)
    if before is None or now is None:
        return [f"{len(old or b'')} bytes were written, {len(new)} are there: too much, or no text"]
    found = difflib.unified_diff(before, now, lineterm="", n=1)
    return [shown(_typed(line)) for line in list(found)[2:]]


def _with_secrets(parts: Any, new: Optional[bytes]) -> List[str]:
    """A file of which parts are secrets: lines that never had one are compared, the others are only counted."""
    now = _lines(new or b"")
    if parts is None or new is None or now is None:
        return ["was changed; where secrets are named, nothing of it is shown"]
    mark = "\0"
    text = "".join(part if isinstance(part, str) else mark for part in parts)
    before = text.splitlines()
    out: List[str] = []
    matcher = difflib.SequenceMatcher(None, before, now, autojunk=False)
    for what, start, end, at, until in matcher.get_opcodes():
        if what == "equal":
            continue
        beside = any(mark in line for line in before[start:end])
        out += [HIDDEN] if beside else [f"-{shown(_typed(one))}" for one in before[start:end]]
        out += [] if beside else [f"+{shown(_typed(one))}" for one in now[at:until]]
    return out


def _now(node: Node, generation: str, name: str, there: Dict[str, bytes]) -> Optional[bytes]:
    """What a name of a file with secrets holds now, be it where kedge put it or in its place."""
    if there.get(name) != secret.link(generation, name).encode():
        return there.get(name)
    return files.read_bytes(secret.folder(node, generation) / name)


def _spread(text: Optional[bytes]) -> Optional[bytes]:
    """JSON on many lines, so that a diff shows the field that was changed; other text as it is."""
    try:
        return json.dumps(json.loads(text or b""), indent=1, sort_keys=True).encode()
    except (ValueError, RecursionError):
        return text


def _lines(text: bytes) -> Optional[List[str]]:
    if len(text) > MAX_TEXT:
        return None
    try:
        return text.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return None


def _typed(line: str) -> str:
    return TYPED.sub(r"\1[not shown]", line)


def shown(text: str) -> str:
    """One line of somebody else's text: bounded, and nothing in it that a terminal would act on."""
    clean = "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "backslashreplace").decode()
        for sign in text[:MAX_LINE]
    )
    return clean + ("…" if len(text) > MAX_LINE else "")


def names_now(node: Node) -> List[str]:
    """The files of the current configuration that were changed by hand, for a look."""
    edit = of_current(node)
    return [shown(name) for name in edit.names[:MAX_NAMES]] if edit is not None else []


def of_earlier(node: Node, release: str) -> Optional[Edit]:
    """The edit of the configuration that a rollback would put back."""
    generation = baseline.before(node, release)
    return of(node, generation) if generation is not None else None
