"""docs/protocol.md says what the code does: every message, field, type, default, state, reason and limit."""

from __future__ import annotations

import dataclasses
import re
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from lightning_async.wire import checksum, fields, frames
from lightning_async.wire.messages import REPLIES, REQUESTS, Reason, Status
from lightning_async.wire.parts import PARTS
from lightning_async.wire.session import REFUSALS, REPLY, TRANSITIONS, State

TEXT = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
PLAIN = {int: "int", float: "float", str: "str", bool: "bool", Any: "any", type(None): "null"}


def section(title: str) -> str:
    """The text under a heading, up to the next heading of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(title)}$\n(.*?)(?=^#{{1,3}} |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[2]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in `text`, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = {index for index, row in enumerate(cells) if set("".join(row)) <= set("-")}
    return [row for index, row in enumerate(cells) if index not in rules and index + 1 not in rules]


def spelled(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " | ".join(spelled(arg) for arg in args)
    if origin is list:
        return f"list of {spelled(args[0])}"
    if origin is dict:
        return f"map of {spelled(args[0])} to {spelled(args[1])}"
    return PLAIN[hint]


def default_of(item: dataclasses.Field) -> str:
    if item.default_factory is not dataclasses.MISSING:
        return repr(item.default_factory())
    if item.default is dataclasses.MISSING:
        return "required"
    if item.default is None or isinstance(item.default, bool):
        return {None: "null", True: "true", False: "false"}[item.default]
    return f'"{item.default}"' if isinstance(item.default, str) else repr(item.default)


@pytest.mark.parametrize("kind", [*REQUESTS, *REPLIES, *PARTS])
def test_every_message_stands_in_the_text_with_its_fields(kind):
    text = section(kind.__name__)
    hints = get_type_hints(kind)
    stated = [row[:3] for row in rows(text)]
    assert stated == [
        [f"`{item.name}`", spelled(hints[item.name]), default_of(item)] for item in dataclasses.fields(kind)
    ]
    assert all(row[3] for row in rows(text))
    assert text.strip().startswith("Request." if kind in REQUESTS else "Part." if kind in PARTS else "Reply to")
    assert "ayload" in text
    if kind in REQUESTS:
        assert f"Reply: {REPLY[kind].__name__}" in text.replace("\n", " ")


def test_no_message_stands_in_the_text_that_does_not_exist():
    assert re.findall(r"^### (.*)$", TEXT, re.MULTILINE) == [kind.__name__ for kind in (*REQUESTS, *REPLIES, *PARTS)]


def test_the_session_table_is_the_one_of_the_code():
    *stated, refused = rows(section("4. Session"))
    expected = [[kind.__name__, REPLY[kind].__name__, *(next_of(state, kind) for state in State)] for kind in REQUESTS]
    assert stated == expected
    assert refused[2:] == [REFUSALS[state].value for state in State]


def next_of(state: State, kind: type) -> str:
    after = TRANSITIONS[state].get(kind)
    return after.value if after is not None else "-"


def test_every_reason_stands_in_the_text():
    assert [row[0].strip("`") for row in rows(section("5. Reason codes"))] == [reason.value for reason in Reason]


def test_the_limits_are_those_of_the_code():
    numbers = [row[1] for row in rows(section("6. Limits and checksums"))]
    assert numbers[0] == f"{frames.MAX_HEADER_BYTES:,} bytes"
    assert numbers[1] == f"{frames.MAX_PAYLOAD_FRAMES:,}"
    assert numbers[3:] == [
        f"{fields.MAX_STRING:,} characters",
        f"{fields.MAX_ITEMS:,} items",
        str(fields.MAX_DEPTH),
        f"{frames.MAX_CONTAINERS:,}",
    ]
    assert checksum.MODULUS == 2**63 - 1


def test_the_example_is_what_is_sent():
    _, header = frames.pack(frames.Envelope(1, Status()))
    assert header.hex(" ").upper() in TEXT
    assert f"these {len(header)} bytes" in TEXT
    assert f"protocol version: {frames.PROTOCOL_VERSION}" in TEXT


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if target != "codecs.md":  # written together with the codecs
            assert (Path(__file__).parents[1] / "docs" / target).exists(), target
