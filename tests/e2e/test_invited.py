"""From an invitation to a training that ends because its key was revoked: real commands and processes, TCP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from eventually import ENOUGH_S
from processes import Program, address_of

TRAIN = """
import sys, torch
from lightning_async import AsyncOptimizer
from lightning_async.errors import RefusedError
model = torch.nn.Linear(8, 1)
sgd = torch.optim.SGD(model.parameters(), lr=0.01)
with AsyncOptimizer(sgd, model, sys.argv[1]) as optimizer:
    steps = 0
    while steps < int(sys.argv[2]) and not optimizer.stop_asked:
        optimizer.zero_grad()
        model(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()
        steps += 1
        print("step", steps, flush=True)
print("trained", flush=True)
"""
ENDLESS = 10**9


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Program]:
    home = {"XDG_CONFIG_HOME": str(tmp_path / "owner")}
    assert said(tmp_path, "owner", "keys", "server").returncode == 0
    keys = tmp_path / "owner" / "lightning_async" / "server"
    command = [sys.executable, "-m", "lightning_async", "serve", "--address=tcp://127.0.0.1:0", f"--keys={keys}"]
    with Program([*command, "--local-steps=2"], tmp_path / "serving", home) as running:
        yield running


def said(tmp_path: Path, who: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`lightning-async words`, by somebody with a home of his own."""
    asks = [f"--timeout={ENOUGH_S}"] if words[0] in ("join", "status") else []
    command = [sys.executable, "-m", "lightning_async", *words, *asks]
    with Program(command, tmp_path / who, {"XDG_CONFIG_HOME": str(tmp_path / who)}) as program:
        code = program.wait()
        return subprocess.CompletedProcess(command, code, program.output)


def training(tmp_path: Path, who: str, address: str, steps: int) -> Program:
    command = [sys.executable, "-c", TRAIN, address, str(steps)]
    return Program(command, tmp_path / who / "training", {"XDG_CONFIG_HOME": str(tmp_path / who)})


@pytest.mark.slow
def test_invited_joined_trained_and_revoked(server: Program, tmp_path: Path) -> None:
    address = address_of(server)
    with training(tmp_path, "stranger", address, 10) as stranger:
        assert stranger.wait() != 0
        assert "speaks only with those who have a key" in stranger.output
    for who in ("alice", "bob"):
        invited = said(tmp_path, "owner", "invite", who)
        assert said(tmp_path, who, "join", invited.stdout.split()[-1]).returncode == 0
    with training(tmp_path, "alice", address, ENDLESS) as alice:
        alice.wait_for("step 20")
        with training(tmp_path, "bob", address, 20) as bob:
            assert bob.wait() == 0
            assert "trained" in bob.output
        assert said(tmp_path, "owner", "revoke", "alice").returncode == 0
        assert alice.wait() != 0
        assert "'alice' was revoked by the server's owner" in alice.output
        assert "trained" not in alice.output
    status = said(tmp_path, "owner", "status", address)
    assert status.returncode == 0
    assert "alice" in status.stdout
    assert "bob" in status.stdout
    secrets = [path.read_text() for path in tmp_path.rglob("*.key")]
    found = [word for text in secrets for line in text.splitlines() if '"secret"' in line for word in line.split('"')]
    hidden = {word for word in found if len(word) == 64}
    assert len(hidden) == 4
    assert not any(secret in server.output for secret in hidden)
