"""The demo as a user runs it: three unequal workers, a second terminal that joins, what is said at the end; Ctrl+C."""

from __future__ import annotations

import json
import re
import shlex
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eventually import eventually
from ports import free
from processes import Program

from lightning_async.cli.status import ask

pytestmark = pytest.mark.slow
LIMIT_S = 280.0
SPEEDS = ["2.0", "1.0", "0.3"]
UNIT_S, MINUTES = 1.5, 3  # so slow that a second terminal has three minutes to come; it does most of the work then
INVITATION = "join from a second terminal"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for little text, enough for a vocabulary of 2048 tokens, and small batches."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(200):  # two percent of them are held out
        lines = [f"value_{i}_{j} = {i * j} + len('{chr(97 + j % 26) * (j % 7)}')" for j in range(60)]
        (folder / f"m{i}.py").write_text("\n".join(lines))
    cache = tmp_path_factory.mktemp("cache")
    return ["--text", str(folder), "--data-dir", str(cache), "--batch-size", "2", "--val-every", "100000"]


def demo(folder: Path, *options: str) -> Program:
    """`make demo` in `folder`, at a pace that leaves the machine idle; whoever joins is not slowed down."""
    command = [sys.executable, "-m", "examples.gpt2.demo", "--unit", str(UNIT_S), "--local-steps", "1", *options]
    return Program([*command, "--out", str(folder / "out")], folder)


def invitation(program: Program) -> list[str]:
    """The command that the demo prints for a second terminal, as words."""
    program.wait_for(INVITATION, LIMIT_S)
    lines = eventually(lambda: program.output.partition(INVITATION)[2].splitlines()[1:2], LIMIT_S, "the command")
    return shlex.split(lines[0])


def everybody_has_sent(address: str) -> bool:
    workers = ask(address, 30.0)["workers"].values()
    return len(workers) == len(SPEEDS) and all(worker["accepted"] for worker in workers)


def chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of a PNG's chunks; fails where it is damaged."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at = 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        content = png[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + content) == struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0]
        yield kind, content
        at += 12 + size


def check_picture(path: Path) -> None:
    """A whole PNG of a size that can be read, and not of one colour."""
    kinds = [kind for kind, _ in chunks(path.read_bytes())]
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    width, height = struct.unpack(">II", next(chunks(path.read_bytes()))[1][:8])
    assert min(width, height) > 300
    pixels = zlib.decompress(b"".join(content for kind, content in chunks(path.read_bytes()) if kind == b"IDAT"))
    assert len(pixels) > width * height
    assert len(set(pixels)) > 16


def check_words(text: str, report: dict[str, Any]) -> None:
    """What the demo prints at its end says what the server and the sockets counted."""
    before, after = map(float, re.findall(r"validation loss .*: ([\d.]+) before, ([\d.]+) after", text)[0])
    assert after < before - 0.5
    workers, parameters = report["workers"], report["parameters"]
    for name, seen in workers.items():
        row = re.search(rf"^{re.escape(name)} +(\d+) +(\d+) +(\d+) +(\d+) +([\d.]+) MB +([\d.]+) MB$", text, re.M)
        assert row is not None, f"no line for {name}"
        steps, rate, updates, refused = (int(word) for word in row.groups()[:4])
        assert (steps, updates, refused) == (seen["steps"], seen["accepted"], sum(seen["refused"].values()))
        assert min(steps, rate, updates) > 0
        up, down = (float(word) * 1e6 for word in row.groups()[4:])
        assert up > 0.95 * updates * 4 * parameters, "every update crosses the socket as float32"
        assert down > 0.95 * 4 * parameters
    bars = re.findall(r"^ *(\d+) #+ (\d+)$", text.partition("staleness of the accepted")[2], re.M)
    assert {staleness: int(count) for staleness, count in bars} == report["staleness"]
    assert sum(int(count) for _, count in bars) == sum(seen["accepted"] for seen in workers.values())


def test_the_demo_and_a_second_terminal(small: list[str], tmp_path: Path) -> None:
    with demo(tmp_path, "--minutes", str(MINUTES), *small) as one:
        join = invitation(one)
        address = join[join.index("--server") + 1]
        eventually(lambda: everybody_has_sent(address), LIMIT_S, "an update of each worker")
        with Program([*join, "--out", str(tmp_path / "second")], tmp_path / "there") as two:
            assert two.wait(LIMIT_S) == 0
        assert one.wait(LIMIT_S) == 0
        one.wait_until_gone(60.0)
        assert free(address)
        text = one.output
    outcomes = [json.loads((tmp_path / name / "outcome.json").read_text()) for name in ("out", "second")]
    report = outcomes[0]["report"]
    assert len(report["workers"]) == len(SPEEDS) + 1
    assert report["steps"] >= 60 * MINUTES * sum(map(float, SPEEDS)) / UNIT_S, "what these speeds make in that time"
    assert outcomes[1]["steps"] > 0
    assert outcomes[0]["after"] == pytest.approx(outcomes[1]["after"], rel=1e-3), "both hold what was published last"
    check_words(text, report)
    check_picture(tmp_path / "out" / "loss.png")
    assert str(tmp_path / "out" / "loss.png") in text
    curves = sorted(path.stem for path in (tmp_path / "out" / "curves").glob("*.csv"))
    assert curves == [f"worker-{rank}" for rank in range(len(SPEEDS))]


def test_ctrl_c_of_the_demo_leaves_nothing_behind(small: list[str], tmp_path: Path) -> None:
    with demo(tmp_path, "--minutes", "60", *small) as program:
        join = invitation(program)
        address = join[join.index("--server") + 1]
        eventually(lambda: everybody_has_sent(address), LIMIT_S, "an update of each worker")
        program.interrupt()
        program.wait_until_gone(60.0)
        assert program.wait(60.0) != 0
        assert free(address)
