"""The fuzz targets hold for what is known, for what Hypothesis makes, for a few random changes; and they see bugs.

`python -m fuzz --inputs 300000` is the long run (docs/log.md says what it found).
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz import __main__ as driver
from fuzz import targets
from lightning_async.codecs import envelope
from lightning_async.wire import frames

EVERY = pytest.mark.parametrize("name", targets.TARGETS)


@EVERY
def test_the_corpus_is_read(name: str) -> None:
    known = [*targets.seeds(name), *(path.read_bytes() for path in sorted((driver.CORPUS / name).glob("*")))]
    assert len(known) >= 2
    for data in known:
        targets.TARGETS[name](data)


@EVERY
def test_a_few_random_changes(name: str) -> None:
    report = driver.fuzz(name, 1500, seed=0)
    assert report["inputs"] == 1500
    assert int(str(report["grown_mib"])) < 100, report


@EVERY
@given(data=st.data())
def test_anything_at_all(name: str, data: st.DataObject) -> None:
    known = st.sampled_from(targets.seeds(name))
    made = st.binary(max_size=300) | st.builds(_spliced, known, known, st.integers(0, 400), st.integers(0, 400))
    targets.TARGETS[name](data.draw(made))


def _spliced(one: bytes, other: bytes, at: int, by: int) -> bytes:
    return one[:at] + other[by:]


@given(st.binary(max_size=400))
@example(b"")
@example(targets.SPLIT * 20)
def test_any_bytes_are_changed_to_bytes_of_a_bounded_length(data: bytes) -> None:
    assert len(driver.mutated(data, data, random.Random(0))) <= driver.LONGEST


BUGS: dict[str, tuple[Any, str, Callable[..., Any], type[Exception]]] = {
    "frames": (frames, "read", lambda kind, values: {}["not there"], KeyError),
    "decoders": (envelope.Reader, "end", lambda reader: 1 / 0, ZeroDivisionError),
    "sessions": (targets, "fits", lambda request, reply: False, AssertionError),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_seen_and_its_input_kept(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (place, attribute, worse, error), known = BUGS[name], targets.seeds(name)
    monkeypatch.setattr(driver, "CORPUS", tmp_path)
    monkeypatch.setattr(driver, "seeds", lambda target: [b"\0\0", b"\1\1"])  # the known ones see it before
    monkeypatch.setattr(driver, "mutated", lambda data, other, chance: chance.choice(known))
    monkeypatch.setattr(place, attribute, worse)
    with pytest.raises(error):
        driver.fuzz(name, 2000, seed=0)
    assert list((tmp_path / "broken").iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarms here")
def test_an_input_that_hangs_is_seen(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from fuzz import __main__ as d, targets as t\n"
        "d.HANGS_S, d.CORPUS = 1, pathlib.Path(sys.argv[1])\n"
        "calls = iter(range(10**9))\n"
        "def hang(data):\n"
        "    while next(calls) > 300: pass\n"
        "t.TARGETS['lists'] = hang\n"
        "d.main(['lists', '--inputs', '1000'])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2])
    assert run.returncode != 0
    assert "one input took more than 1 s" in run.stderr
    assert list((tmp_path / "broken").iterdir())
