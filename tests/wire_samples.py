"""Hypothesis strategies for messages, made from the same annotations that the wire checks."""

from __future__ import annotations

import types
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from lightning_async.wire.messages import REPLIES, REQUESTS
from lightning_async.wire.parts import PARTS

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
PLAIN = st.recursive(
    st.none() | st.booleans() | INTS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is list:
        return st.lists(of(args[0]), max_size=5)
    if origin is dict:
        return st.dictionaries(of(args[0]), of(args[1]), max_size=5)
    if origin in (Union, types.UnionType):
        return st.one_of([of(arg) for arg in args])
    return {int: INTS, float: FLOATS, str: TEXTS, bool: st.booleans(), Any: PLAIN, type(None): st.none()}[hint]


def messages_of(kind: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{item.name: of(hints[item.name]) for item in fields(kind)})


MESSAGES = st.one_of([messages_of(kind) for kind in (*REQUESTS, *REPLIES, *PARTS)])
PAYLOADS = st.lists(st.binary(max_size=100), max_size=4)
