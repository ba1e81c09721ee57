"""Facts about the machine, against what the system says elsewhere."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from lightning_async import __version__, machine


def test_versions_are_those_of_the_packages() -> None:
    found = machine.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    stated = re.search(r'^version = "(.*)"$', (Path(__file__).parents[1] / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    assert found["lightning_async"] == stated[1] == __version__


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the system does not say")
def test_free_memory_is_less_than_all_and_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    assert 0 < machine.free_bytes() < machine.memory_bytes()
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 64 * 2**20, before[1]))
    try:
        assert machine.free_bytes() <= 64 * 2**20
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.free_bytes() == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_bytes() != 4000


def test_the_device_is_named() -> None:
    assert machine.device()
    assert torch.cuda.is_available() or "cpu" in machine.device() or machine.device() == "mps"
