"""Canonical JSON: the fast way says byte for byte what the RFC's own implementation says."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from kedge.model.base import canonical

BITS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
NUMBERS = (
    st.integers(-(2**53) - 2, 2**53 + 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | BITS.filter(math.isfinite)
    | st.sampled_from(
        [0.0, -0.0, 1e-4, 9.999e-5, 1e-6, 1e-7, 1e15, 1e16, 1e21, 0.1, 5e-324, 2.0**53]
    )
)
TEXTS = st.text() | st.text(alphabet=st.characters(codec=None, exclude_categories=()))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_it_says_what_the_rfc_says(value: Any) -> None:
    try:
        wanted = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        with pytest.raises(ValueError, match="not canonical JSON"):
            canonical(value)
    else:
        assert canonical(value) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"b": 1, "a": [True, None, "x"]}, b'{"a":[true,null,"x"],"b":1}'),
        ({"seconds": 60.0, "share": 0.5, "none": -0.0}, b'{"none":0,"seconds":60,"share":0.5}'),
        ({"\U0001f600": 1, "\ufb33": 2}, b'{"\xf0\x9f\x98\x80":1,"\xef\xac\xb3":2}'),
        ('\x00\x1f\x7f"\\/\u2028é', b'"\\u0000\\u001f\x7f\\"\\\\/\xe2\x80\xa8\xc3\xa9"'),
        ([], b"[]"),
        ({}, b"{}"),
    ],
)
def test_known_values(value: Any, wanted: bytes) -> None:
    assert canonical(value) == wanted == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53 + 1, "\ud800", {1: 2}, {"x": {1}}])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not canonical JSON"):
        canonical(value)
