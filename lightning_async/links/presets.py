"""Lines by name, and their text form: `cellular`, `cellular(loss=0.02, up_mbps=0.5)`, `link(up_mbps=2, latency_ms=40)`.

One table for the simulator, the proxy, the strategy's `link=` and the command line; docs/networks.md shows it. The
numbers are round ones of their kind of line, to compare runs by, and no measurement of any provider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from lightning_async.errors import ConfigError
from lightning_async.links.link import Brownout, Cuts, Link
from lightning_async.spec import parse

PRESETS: dict[str, Link] = {
    "datacenter": Link(up_mbps=2500, down_mbps=2500, latency_ms=0.1),
    "lan": Link(up_mbps=1000, down_mbps=1000, latency_ms=0.5, jitter_ms=0.2),
    "wan_good": Link(up_mbps=200, down_mbps=500, latency_ms=10, jitter_ms=2),
    "wan_typical": Link(up_mbps=20, down_mbps=100, latency_ms=25, jitter_ms=5),
    "wan_slow": Link(up_mbps=5, down_mbps=20, latency_ms=40, jitter_ms=10, loss=5e-5),
    "cellular": Link(up_mbps=8, down_mbps=25, latency_ms=35, jitter_ms=30, loss=3e-5),
    "mobile_1mbps": Link(up_mbps=1, down_mbps=1, latency_ms=60, jitter_ms=20, loss=1e-3),
    "satellite": Link(up_mbps=3, down_mbps=25, latency_ms=300, jitter_ms=10),
    "degraded": Link(up_mbps=5, down_mbps=10, latency_ms=80, jitter_ms=60, loss=0.02, duplicate=0.01),
    "brownout": Link(
        up_mbps=20,
        down_mbps=50,
        latency_ms=25,
        jitter_ms=5,
        brownout=Brownout(every_s=60.0, lasts_s=10.0, factor=0.02),
    ),
    "edge": Link(up_mbps=0.5, down_mbps=2, latency_ms=100, jitter_ms=30, loss=1e-3),
    "straggler": Link(up_mbps=0.25, down_mbps=0.5, latency_ms=250, jitter_ms=100, loss=1e-3),
}

LINKS: dict[str, Callable[..., Any]] = {
    **{name: partial(replace, preset) for name, preset in PRESETS.items()},
    "link": Link,
    "cycle": Brownout,
    "cuts": Cuts,
}


def link(choice: str | Link) -> Link:
    """The line that `choice` names. Raises ConfigError for an unknown name, an unknown field or an impossible value."""
    if isinstance(choice, Link):
        return choice
    made: object = parse(choice, LINKS, "link")
    if not isinstance(made, Link):
        raise ConfigError(f"link {choice!r} is a part of a line; known lines: {', '.join(sorted(PRESETS))}, link(...)")
    return made
