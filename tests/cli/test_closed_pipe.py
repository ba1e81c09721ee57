"""Commands whose reader has had enough, as `lightning-async status ADDRESS | head` has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from eventually import ENOUGH_S

from lightning_async.cli import main as cli


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        words = [sys.executable, "-m", "lightning_async", "simulate"]
        ended = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=10 * ENOUGH_S)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_another_pipe_that_breaks_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> int:
        raise BrokenPipeError("of a child")

    monkeypatch.setitem(cli.COMMANDS, "simulate", cli.Command("", cli.COMMANDS["simulate"].add, broken))
    with pytest.raises(BrokenPipeError, match="of a child"):
        cli.main(["simulate"])
