"""A server's state (`Report.state`) as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_async.errors import ProtocolError

BAR = 40  # characters of the longest bar
NAMES = (
    "worker, state, accepted, refused, taken, score, steps, samples, s/round, H, staleness, mean, p99, bound, loss, "
    "up, down, silent"
)
COLUMNS = NAMES.split(", ")
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def text(state: Mapping[str, Any]) -> str:
    """The page that `status` prints. Raises ProtocolError for a state that is not one."""
    try:
        parts = [_head(state), _workers(state), _transfers(state), _refused(state), _leases(state), _staleness(state)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"the server's report cannot be read: {error!r}; update the older side") from error
    return "\n\n".join(part for part in parts if part)


def _head(state: Mapping[str, Any]) -> str:
    ended = f", ended: {plain(state['ended'])}" if state["ended"] else ""
    return (
        f"{plain(state['line'])}\nrun {plain(state['run'])!r}, up {_duration(state['uptime_s'])}, "
        f"{state['parameters']:,} parameters, {state['steps']:,} steps{ended}{_changed(state)}{_waits(state)}"
    )


def _changed(state: Mapping[str, Any]) -> str:
    rows = state.get("changed", {}).items()
    told = ", ".join(f"{plain(name)} from {plain(row['given'])} to {plain(row['now'])}" for name, row in rows)
    return f"\nchanged by its owner: {told}" if told else ""


def _waits(state: Mapping[str, Any]) -> str:
    quorum = state.get("quorum", {})
    if not quorum.get("why"):
        return ""
    return f"\nwaits for workers: has {quorum['have']}, needs {quorum['need']} ({plain(quorum['why'])})"


def _workers(state: Mapping[str, Any]) -> str:
    rows = [_row(name, worker) for name, worker in state["workers"].items()]
    if not rows:
        return "no worker has joined yet"
    hidden = state.get("hidden", 0)
    return aligned([COLUMNS, *rows]) + (f"\nand {hidden} more that have left" if hidden else "")


def _row(name: str, worker: Mapping[str, Any]) -> list[str]:
    return [
        plain(name),
        _state(worker),
        str(worker["accepted"]),
        str(sum(worker["refused"].values())),
        _percent(worker.get("acceptance")),
        _score(worker.get("reputation", {})),
        f"{worker['steps']:,}",
        f"{worker['samples']:,}",
        _number(worker["round_s"]),
        _number(worker.get("round_steps")),
        _spread(worker["staleness"]),
        _number(worker.get("staleness_mean")),
        _number(worker.get("staleness_p99")),
        _number(worker.get("bound")),
        _number(worker["loss"]),
        size(worker["sent_bytes"]),
        size(worker["received_bytes"]),
        _duration(worker["silent_s"]),
    ]


def _state(worker: Mapping[str, Any]) -> str:
    if worker.get("quarantined_until") is not None:
        return "quarantined"
    return "late" if worker.get("late") else plain(worker["state"])


def _score(reputation: Mapping[str, Any]) -> str:
    """`0.93`, with the number of copied updates: `0.93 (4 copies)`. Without a robust rule nobody is judged."""
    if not reputation.get("rounds"):
        return "-"
    copies = reputation["copies"]
    return f"{reputation['score']:.2f}" + (f" ({copies} copies)" if copies else "")


def _refused(state: Mapping[str, Any]) -> str:
    reasons: Counter[str] = Counter()
    for worker in state["workers"].values():
        reasons.update(worker["refused"])
    if state["refused_strangers"]:
        reasons["before joining"] += state["refused_strangers"]
    listed = ", ".join(f"{plain(reason)} {count}" for reason, count in reasons.most_common())
    return f"refused: {listed}" if listed else ""


def _transfers(state: Mapping[str, Any]) -> str:
    """A line for each message that is on its way in chunks, as its worker sees it."""
    rows = [(name, way, part) for name, ways in state.get("transfers", {}).items() for way, part in ways.items()]
    return "\n".join(
        f"{plain(name)} {plain(way)}: {size(part['bytes'])} of {size(part['total'])} "
        f"({_percent(part['bytes'] / max(1, part['total']))})"
        for name, way, part in rows
    )


def _leases(state: Mapping[str, Any]) -> str:
    """A line for each shared data set: how far it is, where its samples are, and what went back and why."""
    return "\n".join(_stream(name, stream) for name, stream in state.get("streams", {}).items() if "applied" in stream)


def _stream(name: str, stream: Mapping[str, Any]) -> str:
    done = stream["applied"] / stream["length"]
    parts = [f"samples of {plain(name)}: {done:.2f} passes of {stream['length']:,} applied"]
    for key, text in (("leased", "leased"), ("waiting", "wait for a step"), ("free", "to be given again")):
        parts += [f"{stream[key]:,} {text}"] if stream[key] else []
    parts += [f"{stream['aside']:,} set aside"] if stream["aside"] else []
    back = ", ".join(f"{plain(why)} {count:,}" for why, count in stream["returned"].items())
    return ", ".join(parts) + (f"; cost: {back}" if back else "")


def _staleness(state: Mapping[str, Any]) -> str:
    counts = {int(value): count for value, count in state["staleness"].items()}
    most = max(counts.values(), default=0)
    bars = [f"{value:5d}  {'#' * max(1, BAR * count // most):{BAR}s} {count:,}" for value, count in counts.items()]
    return "staleness of accepted updates, in versions:\n" + "\n".join(bars) if bars else ""


def _spread(counts: Mapping[str, int]) -> str:
    """The median and the largest."""
    ordered = sorted((int(value), count) for value, count in counts.items())
    half, seen = sum(counts.values()) / 2, 0
    for value, count in ordered:
        seen += count
        if seen >= half:
            return f"{value}..{ordered[-1][0]}"
    return "-"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of one width each."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(_cells(row, widths)).rstrip() for row in rows)


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The name to the left, all else to the right."""
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]


def size(count: float) -> str:
    """Bytes for people."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def plain(value: object) -> str:
    """Text that came over the wire, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(value))
