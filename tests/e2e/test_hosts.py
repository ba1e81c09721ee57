"""A server and three workers on hosts of their own, with unequal lines, one behind a gateway with the shaping proxy.

The gateway's other side is all that the third worker can reach: its packets go nowhere else, and the server sees the
gateway's address, as with the NAT of a home router. The translation itself is the proxy's: neither iptables nor nft is
needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from eventually import eventually
from namespaces import World, ip, why_not

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "scripts" / "apart.py"
LONGEST_S = 240.0
UPDATE_BYTES = 4 * (100 * 100 + 100)
SERVER = "tcp://10.77.1.1:5555"
EXACT = ("--compression", "none")  # the loss is to be that of equal steps, and the bytes those of float32


@pytest.fixture
def world() -> Iterator[World]:
    reason = why_not()
    if reason:
        pytest.skip(f"no network namespaces: {reason}")
    made = World()
    try:
        yield made
    finally:
        made.close()


def test_three_workers_on_unequal_lines_train_to_the_end(world, children):
    for name, mbps in (("near", 20.0), ("far", 2.0), ("gateway", 10.0)):
        net = {"near": 1, "far": 2, "gateway": 3}[name]
        world.join("server", name, (f"10.77.{net}.1/24", f"10.77.{net}.2/24"), mbps)
        if net > 1:  # the server's first address, where it listens, lies behind its other legs too
            ip("ip", "-n", world.host(name), "route", "add", "10.77.1.1", "via", f"10.77.{net}.1")
    world.join("gateway", "home", ("10.78.0.1/24", "10.78.0.2/24"), 5.0)
    environment = {**os.environ, "LIGHTNING_ASYNC_KEY": "none", "LIGHTNING_ASYNC_PATIENCE_S": "200"}
    ours = [sys.executable, "-m", "lightning_async"]
    serve = [*ours, "serve", "--public", "--address", SERVER, "--local-steps", "4", "--total-steps", "240", *EXACT]
    server = children.start(
        world.inside("server", *serve, "--staleness", "0", "--workers", "3", "--quorum", "all"), env=environment
    )
    assert server.stdout.readline().startswith("join:")
    line = [*ours, "netem", "--preset", "wan_typical(up_mbps=4)", "--listen", "tcp://10.78.0.1:7000", "--public"]
    proxy = children.start(world.inside("gateway", *line, "--to", SERVER), env=environment)
    assert "leads to" in proxy.stdout.readline()
    places = {"near": SERVER, "far": SERVER, "home": "tcp://10.78.0.1:7000"}
    with pytest.raises(subprocess.CalledProcessError):
        ip(*world.inside("home", "ip", "route", "get", "10.77.1.1"))  # home reaches the gateway and nobody else
    workers = [
        children.start(world.inside(name, sys.executable, str(SCRIPT), address, "3", str(i)), env=environment)
        for i, (name, address) in enumerate(places.items())
    ]
    for worker in workers:
        eventually(lambda worker=worker: worker.poll() is not None, LONGEST_S, "the end of a worker")
        assert worker.returncode == 0
        assert json.loads(worker.stdout.read().splitlines()[-1])["loss"] < 0.5, "it was 1 with nothing learned"
    eventually(lambda: server.poll() is not None, LONGEST_S, "the end of the server")
    assert server.returncode == 0
    for name in ("near", "far", "home", "gateway"):
        assert world.through_caps(name) > 5 * UPDATE_BYTES, f"several updates of {name} went over its capped line"
