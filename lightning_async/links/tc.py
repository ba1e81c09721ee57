"""A line as `tc` commands, which give a real network interface the same numbers: on the machine of a worker, as root.

The kernel shapes what leaves an interface, so that is up; what arrives is led through an `ifb` interface first. netem
adds its jitter around a mean and may reorder packets by it; ours is added to the least latency and keeps the order of a
connection. Loss is real there, and the kernel's own TCP, CUBIC as a rule, decides what becomes of it.
"""

from __future__ import annotations

from lightning_async.links.link import Link, Way

IFB = "ifb0"
QUEUE_S = 0.1  # what waits before a line
LEAST_PACKETS = 20


def tc_commands(link: Link, device: str = "eth0") -> list[str]:
    """Commands for a shell, with comments, that shape `device` as `link`; the last ones undo it."""
    up, down = (_netem(link.way(direction)) for direction in ("up", "down"))
    return [
        f"tc qdisc replace dev {device} root handle 1: netem {up}",
        f"ip link add {IFB} type ifb",
        f"ip link set dev {IFB} up",
        f"tc qdisc replace dev {device} ingress",
        f"tc filter replace dev {device} parent ffff: protocol all matchall action mirred egress redirect dev {IFB}",
        f"tc qdisc replace dev {IFB} root handle 1: netem {down}",
        *_brownout(link, device),
        *_cuts(link, device),
        "# to undo:",
        f"tc qdisc del dev {device} root",
        f"tc qdisc del dev {device} ingress",
        f"ip link del {IFB}",
    ]


def _netem(way: Way, factor: float = 1.0) -> str:
    half_ms, rate = way.jitter_ms / 2, max(1.0, way.mbps * factor * 1e6)
    packets = max(LEAST_PACKETS, round(rate / 8 * (QUEUE_S + (way.latency_ms + way.jitter_ms) / 1000) / 1500))
    words = [f"limit {packets}", f"delay {way.latency_ms + half_ms:g}ms" + (f" {half_ms:g}ms" if half_ms else "")]
    words += [f"loss {100 * way.loss:g}%"] if way.loss else []
    words += [f"duplicate {100 * way.duplicate:g}%"] if way.duplicate else []
    return " ".join([*words, f"rate {rate:.0f}bit"])


def _brownout(link: Link, device: str) -> list[str]:
    out = link.brownout
    if out is None:
        return []
    up, down = (link.way("up"), link.way("down"))
    slow, usual = ((_netem(up, f), _netem(down, f)) for f in (out.factor, 1.0))
    change = "tc qdisc change dev {} root handle 1: netem {}"
    return [
        f"# every {out.every_s:g} s, for {out.lasts_s:g} s:",
        "while true; do",
        f"  sleep {out.every_s - out.lasts_s:g}",
        *(f"  {change.format(*pair)}" for pair in zip((device, IFB), slow, strict=True)),
        f"  sleep {out.lasts_s:g}",
        *(f"  {change.format(*pair)}" for pair in zip((device, IFB), usual, strict=True)),
        "done",
    ]


def _cuts(link: Link, device: str) -> list[str]:
    if link.cuts is None:
        return []
    return [f"# {link.cuts.spec}: tc cannot break connections; try `ss --kill` or `ip link set dev {device} down`"]
