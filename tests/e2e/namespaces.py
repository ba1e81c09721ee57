"""Hosts of their own, for tests as root: network namespaces with links between them whose rate is capped.

Everything is inside namespaces with names that nobody else has, so the machine's own network stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from typing import Any

LONGEST_S = 60.0


def ip(*words: str) -> str:
    """Run one command of iproute2 and give its output."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=LONGEST_S).stdout


def why_not() -> str:
    """Why there can be no namespaces here; empty when there can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "not root"
    if not shutil.which("ip") or not shutil.which("tc"):
        return "no iproute2"
    world = World()
    try:
        world.host("probe")
        world.join("probe", "other", ("10.79.0.1/24", "10.79.0.2/24"), 1.0)
    except subprocess.CalledProcessError as error:
        return f"not allowed here: {str(error.stderr).strip()[:100]}"
    finally:
        world.close()
    return ""


class World:
    """Hosts by short names. `close` takes them all away, with their links."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex[:6]
        self._hosts: list[str] = []
        self._links = 0

    def host(self, name: str) -> str:
        """The namespace of that host, made when it is first asked for."""
        full = f"la-{self._id}-{name}"
        if full not in self._hosts:
            ip("ip", "netns", "add", full)
            self._hosts.append(full)
            ip("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def join(self, one: str, other: str, addresses: tuple[str, str], mbps: float) -> None:
        """A link between two hosts, with these addresses at its ends, and `mbps` in each direction."""
        self._links += 1
        ends = [f"la{self._id}{self._links}{side}" for side in "ab"]
        spaces = [self.host(one), self.host(other)]
        ip("ip", "link", "add", ends[0], "netns", spaces[0], "type", "veth", "peer", ends[1], "netns", spaces[1])
        for end, space, address in zip(ends, spaces, addresses, strict=True):
            ip("ip", "-n", space, "addr", "add", address, "dev", end)
            ip("ip", "-n", space, "link", "set", end, "up")
            cap = f"tc -n {space} qdisc add dev {end} root tbf rate {mbps}mbit burst 16kb latency 300ms"
            ip(*cap.split())

    def inside(self, name: str, *command: str) -> list[str]:
        """The command that runs `command` on that host."""
        return ["ip", "netns", "exec", self.host(name), *command]

    def through_caps(self, name: str) -> int:
        """Bytes that have left a host over its capped links."""
        found: list[dict[str, Any]] = json.loads(ip("tc", "-n", self.host(name), "-s", "-j", "qdisc", "show"))
        return sum(int(each["bytes"]) for each in found if each["kind"] == "tbf")

    def close(self) -> None:
        """Take all away; a namespace that is gone already is no error."""
        for space in self._hosts:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, timeout=LONGEST_S, check=False)
        self._hosts.clear()
