"""The compression experiment at a size for tests: equal rounds whatever the codec, and bytes that follow it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.experiments import compression

pytestmark = pytest.mark.slow


def test_the_same_schedule_with_fewer_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"def name_{i}(x):\n    return {i} * x + {i % 7}\n" for i in range(400)]
    for i in range(40):
        (tmp_path / f"part{i}.py").write_text("".join(words[i::3]))
    options = ["--steps", "24", "--local-steps", "2", "--text", str(tmp_path), "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr("sys.argv", ["compression", *options, "--only", "uncompressed", "top-k 2 %, top-k 5 %"])
    compression.main()
    plain, sparse = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert plain["rounds"] == sparse["rounds"] == [8, 3, 1]
    assert plain["staleness_max"] == sparse["staleness_max"] > 5
    assert plain["sent_bytes"] > 12 * 4 * plain["parameters"] > 100 * sparse["sent_bytes"]
    assert plain["received_bytes"] > 8 * sparse["received_bytes"]
    assert 0 < sparse["val_loss"] < 9
