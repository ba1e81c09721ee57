"""What the doctor found, as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_async.cli.table import plain, size
from lightning_async.links.link import MEGABIT

if TYPE_CHECKING:
    from lightning_async.cli.costing import Cost
    from lightning_async.cli.finding import Finding
    from lightning_async.cli.measuring import Measured

WIDTH = 12
VERSIONS = ("lightning_async", "python", "torch", "lightning", "pyzmq")


def text(found: Finding) -> str:
    """The page that `doctor` prints."""
    rows = [("server", f"{found.address}, {found.speaks}")] if found.speaks else []
    rows.append(("here", f"{_host(found.here)}; protocol {found.here['protocol']}; {found.here['device']}"))
    if found.line is not None:
        rows += [("there", _host(found.line.host)), *_line(found.line)]
    if found.state is not None:
        rows.append(("run", _run(found.state)))
    if found.cost is not None:
        rows += _cost(found.cost)
    for trouble in found.troubles:
        rows += [("TROUBLE", f"{plain(trouble.what)} [{trouble.code}]"), ("  do", trouble.do)]
    return "\n".join(f"{name:{WIDTH}s}{value}" for name, value in rows) + ("" if found.troubles else "\nall is well")


def _host(host: Mapping[str, Any]) -> str:
    named = ", ".join(f"{name} {plain(host[name])[:40]}" for name in VERSIONS if name in host)
    free = host.get("free_bytes")
    return f"{named}; {size(free)} free" if isinstance(free, int) and free > 0 else named


def _line(line: Measured) -> list[tuple[str, str]]:
    ahead = "ahead of" if line.offset_s > 0 else "behind"
    ms = [1000 * seconds for seconds in (line.rtt_s, line.rtt_least_s, line.rtt_most_s)]
    limited = "; less was measured than wanted, the server had enough" if line.limited else ""
    return [
        ("round trip", f"{ms[0]:.3g} ms, the median of {line.trips} from {ms[1]:.3g} to {ms[2]:.3g}"),
        ("bandwidth", f"up {_rate(line.up_bytes_per_s)}, down {_rate(line.down_bytes_per_s)}, measured with "
         f"{size(line.sent_bytes)} and {size(line.received_bytes)}{limited}"),
        ("clock", f"{abs(line.offset_s):,.3f} s {ahead} the server's, within {line.offset_error_s:.3f} s"),
    ]  # fmt: skip


def _rate(bytes_per_s: float | None) -> str:
    return "not measured" if bytes_per_s is None else f"{_short(bytes_per_s / MEGABIT)} Mbit/s"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _run(state: Mapping[str, Any]) -> str:
    config = state["config"]
    chosen = ", ".join(f"{name} {plain(config.get(name))}" for name in ("compression", "local_steps", "quorum"))
    return (
        f"{plain(state['run'])!r}, version {state['version']}, {state['parameters']:,} parameters, {state['live']} "
        f"live workers; {chosen}"
    )


def _cost(cost: Cost) -> list[tuple[str, str]]:
    rows = [
        (
            "a round",
            f"{size(cost.upload_bytes)} up and {size(cost.download_bytes)} down, {cost.seconds:.3g} s on this line",
        )
    ]
    if cost.hidden is None:
        rows.append(
            ("", f"hidden by {cost.local_steps} steps of {cost.hiding_step_s:.3g} s or more; --step-s says more")
        )
    else:
        rows.append(("", f"{cost.local_steps} steps of {cost.step_s:.3g} s hide {cost.hidden:.0%} of it: computing for "
                     f"{cost.utilisation:.0%} of the time"))  # fmt: skip
    if cost.advice is not None:
        plan = cost.advice
        configured = f"compression={plan.compression!r}, local_steps={plan.local_steps}, quorum={plan.quorum}"
        told = f"would compute for {plan.utilisation[0]:.0%} of the time; `lightning-async plan` says more"
        rows.append(("better", f"a new run with {configured} {told}"))
    return rows
