"""`lightning-async doctor tcp://host:port`: is the way to a server well, what does a round cost on it, and if not, why.

It asks what everybody may ask and joins nothing: it counts for no quorum, and the run and its journal do not notice.
Each step needs the one before: a name, a port, somebody who speaks our protocol, a key that is taken, a run, a line.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from lightning_async.cli.finding import Finding
from lightning_async.cli.trouble import Ill, Trouble
from lightning_async.errors import ConfigError

if TYPE_CHECKING:
    from lightning_async.cli.measuring import Measured
    from lightning_async.layout import Layout
    from lightning_async.transport.keys import Key

CLOCK_S = 30.0  # by which the clocks may differ
REPORT = {"run": str, "version": int, "parameters": int, "live": int, "ended": str, "config": dict, "workers": dict}
WORKER_COPIES = 5  # of the model that a worker needs at least: its parameters, their gradients, three of the exchange


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", help="the server's address, as a worker would dial it")
    parser.add_argument("--key", metavar="FILE", help="a key of the server's list, for a server with keys")
    parser.add_argument("--model", metavar="MODULE:FUNCTION", help="makes the model that is to be trained here: is it "
                        "the run's? Also from the current folder")  # fmt: skip
    parser.add_argument("--step-s", type=float, metavar="SECONDS", help="of an optimizer step here, to say how much of "
                        "an exchange it hides. Default: what the run's live workers need")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=8.0, metavar="SECONDS", help="for measuring. Default: 8.")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="of one answer. Default: 10.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    from lightning_async.cli.prescription import text

    for name in ("step_s", "seconds", "timeout"):
        if (value := getattr(args, name)) is not None and not 0 < value < 3600:
            raise ConfigError(f"--{name.replace('_', '-')}: got {value}, expected seconds above 0")
    found = examine(args)
    print(json.dumps(found.values(), indent=2) if args.json else text(found))
    return 1 if found.troubles else 0


def examine(args: argparse.Namespace) -> Finding:
    """Everything that can be found out. Raises ConfigError for arguments that cannot be used."""
    from lightning_async.cli.reaching import place

    place(args.address)
    layout = None if args.model is None else _layout(args.model)
    found = Finding(args.address, here=_here())
    try:
        _look(found, args, layout)
    except Ill as end:
        found.troubles.append(end.trouble)
    return found


def _look(found: Finding, args: argparse.Namespace, layout: Layout | None) -> None:
    """Step by step, until one fails with Ill."""
    from lightning_async.cli.asking import Talk, key_of
    from lightning_async.cli.measuring import Meter
    from lightning_async.cli.reaching import check_http, key_at, reach

    greeted = reach(args.address, args.timeout)
    key = key_at(args.address, args.key, greeted, key_of)
    if not args.address.startswith("tcp://"):
        check_http(args.address, args.timeout)
    found.speaks = f"encrypted, as {key.role} {key.name!r}" if key is not None else "without keys"
    with Talk(args.address, key, impatient=True) as talk:
        found.state = _state(talk, args.timeout)
        tensors = [] if layout is None else layout.manifest
        found.line = Meter(talk, args.seconds, args.timeout, tensors).measure()
    try:
        _judge(found, found.state, found.line, args.step_s, layout)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        found.state = None
        raise Ill("server_newer", f"the server's report cannot be read: {error!r}") from error


def _judge(found: Finding, state: dict[str, Any], line: Measured, step_s: float | None, layout: Layout | None) -> None:
    """What the run and the line come to together."""
    from lightning_async.cli.costing import cost, line_of

    if line.up_bytes_per_s and line.down_bytes_per_s:
        found.cost = cost(state, line_of(line.rtt_s, line.up_bytes_per_s, line.down_bytes_per_s), step_s)
    found.troubles += _troubles(found, state, line, layout)


def _state(talk: Any, timeout_s: float) -> dict[str, Any]:
    """The run's. Raises Ill where the conversation fails."""
    from lightning_async.errors import ProtocolError, RefusedError, UnreachableError
    from lightning_async.transport.zeromq_handshakes import HANGS_UP
    from lightning_async.wire.frames import VersionError
    from lightning_async.wire.messages import Reason, Refused, Report, Status

    try:
        answer = talk.ask(Status(), timeout_s).message
    except VersionError as error:
        raise Ill("server_newer" if error.theirs > error.ours else "server_older", str(error)) from error
    except ProtocolError as error:
        raise Ill("not_ours", f"{talk.address} answered what is no message: {error}") from error
    except RefusedError as error:
        raise Ill(_about_keys(error.detail, talk.key), error.detail) from error
    except UnreachableError as error:
        raise Ill("wrong_server_key" if HANGS_UP in str(error) else "no_answer", str(error)) from error
    if isinstance(answer, Refused) and answer.reason == Reason.KEY.value:
        raise Ill("key_refused", answer.detail)
    if isinstance(answer, Refused) and answer.reason == Reason.VERSION.value:
        raise Ill("server_older", answer.detail)
    if not isinstance(answer, Report):
        raise Ill("not_ours", f"{talk.address} answered Status by {str(answer)[:200]}")
    missing = [name for name, kind in REPORT.items() if not isinstance(answer.state.get(name), kind)]
    if missing:
        raise Ill("server_older", f"the server's report lacks {', '.join(missing)}")
    return answer.state


def _about_keys(detail: str, key: Key | None) -> str:
    if key is None:
        return "needs_key"
    return "no_keys_there" if "without keys" in detail else "key_refused"


def _troubles(found: Finding, state: dict[str, Any], line: Measured, layout: Layout | None) -> list[Trouble]:
    """What is wrong although everything answers."""
    told = []
    if line.layout:
        told.append(Trouble("layout", f"the model is not the run's: {line.layout}"))
    free, size = found.here["free_bytes"], 4 * (int(state["parameters"]) or (0 if layout is None else layout.d))
    if 0 < free < WORKER_COPIES * size:
        told.append(
            Trouble(
                "memory",
                f"{free / 2**20:,.0f} MiB of memory are free here; a worker of this run needs "
                f"{WORKER_COPIES * size / 2**20:,.0f} MiB at least",
            )
        )
    if abs(line.offset_s) > CLOCK_S + line.offset_error_s:
        ahead = "ahead of" if line.offset_s > 0 else "behind"
        told.append(Trouble("clock", f"this machine's clock is {abs(line.offset_s):,.0f} s {ahead} the server's"))
    if state["ended"]:
        told.append(Trouble("ended", f"the run has ended: {state['ended']}"))
    return told


def _here() -> dict[str, Any]:
    from lightning_async.machine import device, free_bytes, versions
    from lightning_async.wire.frames import PROTOCOL_VERSION

    return {**versions(), "protocol": PROTOCOL_VERSION, "free_bytes": free_bytes(), "device": device()}


def _layout(text: str) -> Layout:
    """Of the model that "module:function" makes. Raises ConfigError, LayoutError."""
    from torch import nn

    from lightning_async.cli.owner import imported
    from lightning_async.layout import shared_tensors

    model = imported(text, "--model")()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model: {text!r} gave {type(model).__name__}, expected a torch.nn.Module")
    return shared_tensors(model).layout
