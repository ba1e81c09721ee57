"""docs/networks.md says what the code has: its table of presets, and every example of a line."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from lightning_async.cli.netem import COLUMNS, cells
from lightning_async.links import PRESETS, Link, link

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()


def test_the_table_of_presets_is_that_of_the_code():
    rows = [[f"`{name}`", *cells(line)] for name, line in PRESETS.items()]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    assert f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n{table}\n\n" in PAGE


def test_every_example_is_a_line():
    block = next(part for part in PAGE.split("```")[1::2] if "away_s" in part)
    examples = block.strip().splitlines()
    assert len(examples) == 6
    assert all(link(text) for text in examples)


def test_every_field_is_told_of():
    told = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("| field |") :]))
    single = {field.name for field in fields(Link) if not field.name.startswith(("up_", "down_"))}
    assert single | {"up_mbps", "down_mbps"} <= told
