"""Specs: nested calls of known names with literal arguments, and nothing else is ever run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_async import spec
from lightning_async.errors import ConfigError


@dataclass(frozen=True)
class Member:
    spec: str


def leaf(rate: float = 1.0, name: str = "x") -> Member:
    return Member(spec.call("leaf", rate=rate, name=name))


def pair(*parts: Member, times: int = 1) -> Member:
    if not all(isinstance(part, Member) for part in parts):
        raise TypeError("pair joins members")
    return Member(spec.call("pair", *parts, times=times))


TABLE: dict[str, Any] = {"leaf": leaf, "pair": pair}


def parse(text: str) -> Member:
    made: Member = spec.parse(text, TABLE, "thing")
    return made


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("leaf", "leaf(rate=1.0, name='x')"),
        (" leaf() ", "leaf(rate=1.0, name='x')"),
        ("leaf(0.5)", "leaf(rate=0.5, name='x')"),
        ("leaf(name='y', rate=-2e-3)", "leaf(rate=-0.002, name='y')"),
        ("pair(leaf, leaf(2.0), times=3)", "pair(leaf(rate=1.0, name='x'), leaf(rate=2.0, name='x'), times=3)"),
    ],
)
def test_text_becomes_its_canonical_form(text: str, canonical: str) -> None:
    assert parse(text).spec == canonical
    assert parse(canonical) == parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "'leaf'",
        "leaf(",
        "leaf)",
        "nobody",
        "nobody()",
        "leaf(colour=1)",
        "leaf(1, 2, 3)",
        "leaf(**{'rate': 1})",
        "leaf(*[1])",
        "leaf.__class__",
        "leaf()()",
        "__import__('os')",
        "leaf(__import__('os').getpid())",
        "leaf(rate=open('x'))",
        "leaf(rate=1 if True else 2)",
        "leaf(rate=[x for x in (1,)])",
        "pair(1)",
        "leaf; leaf",
        "lambda: leaf",
        "(" * 500,
        "pair(" * 200 + ")" * 200,
        "leaf" + " " * 2000,
        "leaf\0",
    ],
)
def test_anything_else_is_refused_and_never_run(text: str) -> None:
    with pytest.raises(ConfigError, match=r"thing|leaf|pair"):
        parse(text)


@given(st.text(max_size=60) | st.text(alphabet="leafpir(),=.'0 ", max_size=40))
def test_any_text_is_a_member_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse(text).spec


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20))
def test_arguments_come_back_as_they_were(rate: float, name: str) -> None:
    made = leaf(rate, name)
    assert parse(made.spec) == made
