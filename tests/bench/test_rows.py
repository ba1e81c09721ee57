"""`python -m bench`: finds the modules, prints their rows, and refuses a row that says too little."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest

from bench import __main__ as bench

ROW = {"bench": "b", "ours": 2.0, "reference": 1.0, "floor": 1.5, "unit": "x/s", "ratio": 2.0}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module `bench.made` with one good row."""
    made: Any = ModuleType("bench.made")
    made.rows = lambda: iter([ROW])
    monkeypatch.setitem(bench.sys.modules, "bench.made", made)
    monkeypatch.setattr(bench, "modules", lambda: ["made"])
    return made


def test_training_is_among_the_modules() -> None:
    assert {"training", "unequal"} <= set(bench.modules())
    assert "__main__" not in bench.modules()


def test_one_json_object_per_line_and_nothing_else(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module.rows = lambda: (print("noise of what is measured") or row for row in [ROW])
    bench.main([])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [ROW]


@pytest.mark.parametrize("field", bench.FIELDS)
def test_a_row_without_a_field_is_refused(module: Any, field: str) -> None:
    module.rows = lambda: iter([{key: value for key, value in ROW.items() if key != field}])
    with pytest.raises(ValueError, match=field):
        list(bench.measure("made"))


def test_a_module_without_rows_measures_nothing(module: Any) -> None:
    del module.rows
    assert list(bench.measure("made")) == []


def test_an_unknown_module_is_named_with_the_known_ones(module: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"nothing.*made"):
        bench.main(["nothing"])
