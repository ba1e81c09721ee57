"""A stepper as plain values and tensors, and back: all that the next steps depend on, for memory.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_async.config import RunConfig
from lightning_async.layout import Layout
from lightning_async.server.buffer import Slot
from lightning_async.server.norms import Norms
from lightning_async.server.rules import Rules
from lightning_async.server.stepping import Stepper


def dump(stepper: Stepper) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(record, tensors); the tensors are never written again."""
    tensors = stepper.store.dump() | {f"state/{path}": value.clone() for path, value in stepper.state().items()}
    for group, state in stepper.aggregator_state.items():
        tensors |= {f"aggregator/{group}/{key}": value.clone() for key, value in state.items()}
    for group, buffer in enumerate(stepper.waiting):
        for i, slot in enumerate(buffer):
            tensors |= {f"waiting/{group}/{i}/{name}": tensor for name, tensor in slot.tensors.items()}
    filters: list[list[str]] = []
    if stepper.judge is not None:
        filters, kept = stepper.judge.dump()
        tensors |= kept
    record = {
        "version": stepper.store.version,
        "filters": filters,
        "optimizers": stepper.optimizers,
        "norms": [norms.dump() for norms in stepper.norms],
        "aggregators": [[group, list(state)] for group, state in stepper.aggregator_state.items()],
        "waiting": [[slot.numbers for slot in buffer] for buffer in stepper.waiting],
    }
    return record, tensors


def restored(
    config: RunConfig, rules: Rules, layout: Layout, record: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Stepper:
    """The stepper that `dump` described. Raises PayloadError or KeyError for a record that is not one."""
    payload = [tensors[name].numpy().tobytes() for name in ("published", "buffers")]
    stepper = Stepper(config, rules, layout, record["optimizers"], payload)
    stepper.store.restore(tensors, record["version"])
    stepper.load({path.removeprefix("state/"): v for path, v in tensors.items() if path.startswith("state/")})
    stepper.norms = [Norms.restored(kept) for kept in record["norms"]]
    for group, keys in record["aggregators"]:
        stepper.aggregator_state[group] = {key: tensors[f"aggregator/{group}/{key}"] for key in keys}
    if stepper.judge is not None:
        stepper.judge.restore(record["filters"], tensors)
    for group, slots in enumerate(record["waiting"]):
        for i, numbers in enumerate(slots):
            place = f"waiting/{group}/{i}/"
            own = {name.removeprefix(place): v for name, v in tensors.items() if name.startswith(place)}
            stepper.waiting[group].add(Slot.read(numbers, own, stepper.sizes), stepper.sizes)
    return stepper
