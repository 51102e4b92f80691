"""Judge what a probe saw: three verdicts, and only `pass` opens anything.

`unknown` is what could not be looked at: a missing path, no data, NaN, an error, a time-out. `not` does not turn it
into a pass. Numbers compare with numbers; decimal and 0x strings count as numbers where an order is
asked for (etcd, CometBFT and geth write heights that way); `eq` wants the same type.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Union

PASS = "pass"  # noqa: S105 -- a verdict
FAIL = "fail"
UNKNOWN = "unknown"
MISSING = object()
SHOWN = 512
DECIMAL = re.compile(r"-?[0-9]{1,64}(\.[0-9]{1,64})?\Z")
PART = re.compile(r'"[^"]*"(?=\.|\Z)|[^.]*')
HEX = re.compile(r"0x[0-9a-fA-F]{1,64}\Z")


class Verdict(NamedTuple):
    """What a probe says: the verdict, a sentence, what was seen, and what was captured."""

    verdict: str
    why: str
    saw: Any
    captured: Dict[str, Any]


def at_path(body: Any, path: str) -> List[Any]:
    """The values at a path of keys and indexes; `*` stands for every element. MISSING where none is."""
    found = [body]
    for part in parts_of(path):
        deeper: List[Any] = []
        for one in found:
            if part == "*" and isinstance(one, (list, dict)):
                deeper += one if isinstance(one, list) else one.values()
            else:
                deeper.append(_step(one, part))
        found = deeper
    return found or [MISSING]


def parts_of(path: str) -> List[str]:
    """The keys and indexes of a path. In double quotes a key may have dots: `"a.b".c`; a quoted part stays quoted."""
    parts: List[str] = []
    at = 0
    while path and at <= len(path):
        found = PART.match(path, at)
        parts.append(found.group() if found else "")
        at += len(parts[-1]) + 1
    return parts


def hint(body: Any, path: str) -> str:
    """What could have been meant by a path at which nothing is: what there is, in brackets; or nothing."""
    parts = parts_of(path)
    for count, part in enumerate(parts):
        if part == "*" or at_path(body, ".".join(parts[: count + 1]))[0] is not MISSING:
            continue
        above = at_path(body, ".".join(parts[:count]))[0] if count else body
        if not isinstance(above, dict):
            break
        for end in range(len(parts), count + 1, -1):
            dotted = ".".join(parts[count:end])
            if dotted in above:
                quoted = ".".join([*parts[:count], f'"{dotted}"', *parts[end:]])
                return f" (a field whose name has dots is written '{quoted}')"
        names = ", ".join(list(above)[:8])[:200] + (", …" if len(above) > 8 else "")
        return f" ({'.'.join(parts[:count]) or 'it'} has {names or 'no fields'})"
    return ""


def _step(one: Any, part: str) -> Any:
    if len(part) > 1 and part.startswith('"') and part.endswith('"'):
        return one.get(part[1:-1], MISSING) if isinstance(one, dict) else MISSING
    if isinstance(one, dict):
        return one.get(part, MISSING)
    if isinstance(one, list) and part.isascii() and part.isdigit() and int(part) < len(one):
        return one[int(part)]
    return MISSING


def quantity(value: Any) -> Optional[Union[int, float]]:
    """A value as a finite number, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        if HEX.match(value):
            return int(value, 16)
        if DECIMAL.match(value):
            return float(value) if "." in value else int(value)
    return None


def same(left: Any, right: Any) -> bool:
    """Equal and of the same type: 1 is not true, "1" is not 1; whole and broken numbers are numbers."""
    numbers = (int, float)
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, numbers) and isinstance(right, numbers):
        return left == right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and bool(left == right)


ORDERS: Dict[str, Callable[[Any, Any], bool]] = {
    "ge": lambda left, right: left >= right,
    "gt": lambda left, right: left > right,
    "le": lambda left, right: left <= right,
    "lt": lambda left, right: left < right,
}


PARTS: Dict[str, Callable[[str, str], bool]] = {
    "contains": lambda whole, part: part in whole,
    "starts_with": lambda whole, part: whole.startswith(part),
}

WORDED = {
    "ne": "anything but",
    "ge": "at least",
    "gt": "more than",
    "le": "at most",
    "lt": "less than",
    "in": "one of",
    "matches": "a text that matches",
    "contains": "a text that contains",
    "starts_with": "a text that starts with",
}


def expected(matcher: Dict[str, Any], captured: Dict[str, Any]) -> str:
    """What a matcher asks for, in words: `0`, `at least 3 and less than 5`."""
    told = []
    for word, wanted in matcher.items():
        if word == "exists":
            told.append("a value" if wanted else "no value")
            continue
        operands = [_operand(one, captured) for one in (wanted if word == "in" else [wanted])]
        text = ", ".join(worded(one) for one in operands)
        told.append(f"{WORDED[word]} {text}" if word in WORDED else text)
    return " and ".join(told)[:200]


def worded(value: Any) -> str:
    """A value in a sentence, as documents write it."""
    if value is MISSING:
        return "nothing captured"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def match(value: Any, matcher: Dict[str, Any], captured: Dict[str, Any]) -> str:
    """The verdict of one value against all operators of a matcher."""
    if value is MISSING:
        # `exists: false` is the one thing that an absent value can answer.
        return PASS if matcher == {"exists": False} else UNKNOWN
    found = [_operator(value, word, wanted, captured) for word, wanted in matcher.items()]
    return every(found)


def _operator(value: Any, word: str, wanted: Any, captured: Dict[str, Any]) -> str:
    if word == "exists":
        return PASS if wanted else FAIL
    if word == "matches":
        if not isinstance(value, str) or len(value) > 1 << 16:
            return UNKNOWN
        return PASS if re.search(wanted, value) else FAIL
    operands = [_operand(one, captured) for one in (wanted if word == "in" else [wanted])]
    if any(one is MISSING for one in operands):
        return UNKNOWN
    if word in PARTS or word in ORDERS:
        return _compared(value, word, operands[0])
    found = any(same(value, one) for one in operands)
    return PASS if found != (word == "ne") else FAIL


def _compared(value: Any, word: str, operand: Any) -> str:
    """Texts by their parts, quantities by their order; anything else is not comparable."""
    if word in PARTS:
        if not isinstance(value, str) or not isinstance(operand, str) or not operand:
            return UNKNOWN
        return PASS if PARTS[word](value, operand) else FAIL
    left, right = quantity(value), quantity(operand)
    if left is None or right is None:
        return UNKNOWN
    return PASS if ORDERS[word](left, right) else FAIL


def _operand(wanted: Any, captured: Dict[str, Any]) -> Any:
    if isinstance(wanted, dict):
        return captured.get(wanted["captured"], MISSING)
    return wanted


def every(verdicts: List[str]) -> str:
    """All must pass; one clear failure is a failure, whatever could not be looked at. None is no pass."""
    if FAIL in verdicts:
        return FAIL
    return PASS if verdicts and UNKNOWN not in verdicts else UNKNOWN


def either(verdicts: List[str]) -> str:
    """One pass is enough; what could not be looked at might have passed."""
    if PASS in verdicts:
        return PASS
    return FAIL if verdicts and UNKNOWN not in verdicts else UNKNOWN


def shown(value: Any) -> Any:
    """A value small enough for a record: long texts and large values are cut."""
    if value is MISSING:
        return None
    if isinstance(value, str):
        return value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
    if isinstance(value, (int, float, bool)) or value is None:
        return value
    text = repr(value)
    return value if len(text) <= SHOWN else f"{text[:SHOWN]}…"
