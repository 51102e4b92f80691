"""What comes from outside this program: texts, JSON values and names of files, bounded and fit for a line of JSON.

A daemon answers what it likes, a command prints what it likes, a file has any name. Whatever of it is told or recorded
goes through here, so that every line is UTF-8, no number is one that others cannot read, and nothing is longer or
deeper than what a record holds. What is a condition's data is stricter: see `parsed`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Dict, List, Tuple

TEXT_MAX = 1 << 20
TEXTS_MAX = 1_200_000
ITEMS_MAX = 20_000
DEPTH_MAX = 24
DIGITS_MAX = 100
# Beyond these a number is another one for whoever reads JSON into floats, and canonical JSON has none.
WHOLE_MAX = 2**53 - 1
# A text of this length comes through, whatever stood before it.
SHORT = 128
# So many values in a list or an object are few: with three levels of them no bound is near.
SMALL = 16
PARSED_DEPTH = 64

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2})")


def text(value: str, most: int = TEXT_MAX) -> str:
    r"""A text that is UTF-8 and at most so long. A byte that was none is shown as `\xff`, half of a pair as `\ud800`."""
    if len(value) > most:
        value = f"{value[:most]}\u2026"
    return value if value.isascii() else _SURROGATE.sub(_shown, value)


def _shown(found: Any) -> str:
    code = ord(found.group())
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def value(given: Any) -> Any:
    """A JSON value in which every text is one, every number can be read by everybody, and nothing is endless.

    Whole numbers beyond 2^53 and those that are not finite become texts. What is too deep or too much is left out, and a
    mark says so. A small value that needs none of this is returned as it is, not copied.
    """
    if is_small_and_clean(given):
        return given
    left = [ITEMS_MAX, TEXTS_MAX]
    return _value(given, DEPTH_MAX, left)


def is_small_and_clean(given: Any, depth: int = 3) -> bool:
    """Whether `value` would change nothing in a small value, as nearly every one is; no for what needs a closer look."""
    kind = type(given)
    if kind is str:
        return len(given) <= SHORT and given.isascii()
    if given is None or kind is bool:
        return True
    if kind is int or kind is float:
        return bool(-WHOLE_MAX <= given <= WHOLE_MAX)
    if kind is dict and depth and len(given) <= SMALL:
        for key, one in given.items():
            if type(key) is not str or len(key) > SHORT or not key.isascii():
                return False
            if not is_small_and_clean(one, depth - 1):
                return False
        return True
    if kind is list and depth and len(given) <= SMALL:
        return all(is_small_and_clean(one, depth - 1) for one in given)
    return False


def _value(given: Any, depth: int, left: List[int]) -> Any:
    if type(given) is str and len(given) <= SHORT and given.isascii():
        # Nearly every text: it comes through as it is.
        left[1] -= len(given)
        return given
    if given is None or isinstance(given, bool):
        return given
    if isinstance(given, str):
        return _text(given, left)
    if isinstance(given, int):
        return given if -WHOLE_MAX <= given <= WHOLE_MAX else _digits(given)
    if isinstance(given, float):
        # Canonical JSON writes a large one as a whole number, which it is not when it is read again.
        return given if -WHOLE_MAX <= given <= WHOLE_MAX else repr(given)
    if isinstance(given, (list, tuple)):
        return [_value(one, depth - 1, left) for one in _some(given, depth, left)]
    if isinstance(given, dict):
        pairs = _some(list(given.items()), depth, left)
        return {_text(str(key), left): _value(one, depth - 1, left) for key, one in pairs}
    return _text(repr(given), left)


def _some(given: Any, depth: int, left: List[int]) -> Any:
    """As many of these as there is room for; none where it is too deep."""
    kept = given[: left[0]] if depth > 0 else []
    left[0] -= len(kept)
    return kept


def _text(given: str, left: List[int]) -> str:
    # What kedge goes by (a digest, a name) comes through, whatever a daemon filled the line with.
    found = text(given, min(TEXT_MAX, max(left[1], SHORT)))
    left[1] -= len(found)
    return found


def _digits(number: int) -> str:
    # Not `str`: Python refuses that for numbers of thousands of digits.
    return (
        str(number)
        if number.bit_length() < 3 * DIGITS_MAX
        else f"a number of {number.bit_length()} bits"
    )


# -- names of files ------------------------------------------------------------------------------------------------


def name(path: str) -> str:
    r"""The name of a file as text that `path_of` turns back into exactly that name: bytes that are not UTF-8 are written
    as `\xff`, a backslash as two.
    """
    return _SURROGATE.sub(_shown, path.replace("\\", "\\\\"))


def path_of(written: str) -> str:
    """The name of a file that `name` wrote."""
    return _ESCAPED.sub(_byte, written)


def _byte(found: Any) -> str:
    escaped: str = found.group(1)
    return escaped if escaped == "\\" else chr(0xDC00 + int(escaped[1:], 16))


# -- answers -------------------------------------------------------------------------------------------------------


def parsed(raw: bytes) -> Any:
    """An answer as JSON, for conditions to be held against. ValueError for what is no data: not UTF-8, NaN and infinite
    numbers in any spelling, numbers of more than `DIGITS_MAX` digits, a name that comes twice, too deep nesting.

    Half of a surrogate pair in a text becomes visible and compares with nothing that was meant.
    """
    try:
        found = json.loads(
            raw.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_once,
        )
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return _readable(found)


def _no_constant(constant: str) -> float:
    raise ValueError(f"{constant} is no data")


def _finite(digits: str) -> float:
    if len(digits) > DIGITS_MAX or not math.isfinite(float(digits)):
        raise ValueError(f"{digits[:40]} is no number to compare with")
    return float(digits)


def _whole(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise ValueError(f"a number of {len(digits)} digits is no data")
    return int(digits)


def _once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"the name {twice[:80]!r} comes twice")
    return found


def _readable(found: Any) -> Any:
    """The same with every text one that is UTF-8; ValueError for more than `PARSED_DEPTH` levels."""
    if isinstance(found, str):
        return text(found)
    level: List[Any] = [found]
    for _ in range(PARSED_DEPTH):
        level = [deeper for one in level for deeper in _mended(one)]
        if not level:
            return found
    raise ValueError("nested too deep")


def _mended(one: Any) -> List[Any]:
    """Make the texts right in a list or an object itself; gives the lists and objects in it."""
    if isinstance(one, list):
        for at, part in enumerate(one):
            if isinstance(part, str):
                one[at] = text(part)
        return [part for part in one if isinstance(part, (list, dict))]
    if isinstance(one, dict):
        pairs = list(one.items())
        one.clear()
        one.update(
            (text(key), text(part) if isinstance(part, str) else part) for key, part in pairs
        )
        return [part for part in one.values() if isinstance(part, (list, dict))]
    return []
