"""Gradient mode: the user's own torch optimizer, run by the server.

A worker describes its optimizer in plain values (`describe`): class name, parameter names and hyperparameters of each
group. The server builds the same class from an allow-list (`TorchOuter`) over views of its flat vector. Nothing is
unpickled and no name is looked up outside the allow-list. Schedules run on the workers: each push carries the
present hyperparameters beside their initial values (`hyper_of`), and the server uses the median over live workers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lightning_async.errors import ConfigError, PayloadError
from lightning_async.outer.base import all_finite

ALLOWED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    cls.__name__: cls
    for cls in (
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.ASGD,
    )
}
SCHEDULED = ("lr", "momentum", "betas", "weight_decay")  # what torch's schedulers change during a run
PINNED = {"capturable": False, "differentiable": False, "fused": None}  # device matters of the worker, not the server's


def describe(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """`optimizer` in plain values; `names` maps id(parameter) to its name. Raises ConfigError when not allowed."""
    cls = type(optimizer).__name__
    allowed: object = ALLOWED.get(cls)
    if allowed is not type(optimizer):
        raise ConfigError(
            f'submit="gradient" lets the server run the optimizer: got {type(optimizer).__module__}.{cls}, '
            f'expected one of torch.optim {", ".join(ALLOWED)}. Use submit="update" for any other'
        )
    groups = []
    for group in optimizer.param_groups:
        hyper = {key: _plain(group[key]) for key in optimizer.defaults if key in group}
        missing = [tuple(p.shape) for p in group["params"] if p.requires_grad and id(p) not in names]
        if missing:
            raise ConfigError(f"{cls} steps a parameter of shape {missing[0]} that is not part of the module")
        groups.append({"names": [names[id(p)] for p in group["params"] if p.requires_grad], "hyper": hyper})
    return {"class": cls, "groups": groups}


def hyper_of(optimizer: torch.optim.Optimizer, initial: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per group {name: [value now, initial value]} for what schedulers change; `initial` is one mapping per group."""
    return [
        {key: [_plain(group[key]), start[key]] for key in SCHEDULED if key in group and key in start}
        for group, start in zip(optimizer.param_groups, initial, strict=True)
    ]


def _plain(value: Any) -> Any:
    """Numbers, None, booleans and lists of them. A tensor or numpy scalar becomes a float."""
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return float(value)


class TorchOuter:
    """A torch optimizer over named float32 views of the server's parameters.

    Args:
        record: what `describe` made on a worker; checked here, since it came over the wire.
        tensors: name -> view into the server's vector.
    """

    def __init__(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        cls = ALLOWED.get(record.get("class", "")) if isinstance(record, Mapping) else None
        if cls is None:
            raise PayloadError(f"an optimizer of the run must be one of {', '.join(ALLOWED)}; got {str(record)[:80]}")
        self._named: dict[str, nn.Parameter] = {}
        rows = record.get("groups")
        if not isinstance(rows, list):
            raise PayloadError(f"an optimizer of the run must hold groups; got {str(record)[:80]}")
        groups = [self._read_group(group, cls, tensors) for group in rows]
        try:
            self._optimizer = cls(groups)
        except (TypeError, ValueError) as error:
            raise PayloadError(f"{cls.__name__}: {error}") from error
        self._initial = [{key: g[key] for key in SCHEDULED if key in g} for g in self._optimizer.param_groups]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that this optimizer steps."""
        return tuple(self._named)

    def _read_group(
        self, group: Any, cls: Callable[..., torch.optim.Optimizer], tensors: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        match group:
            case {"names": [*names], "hyper": dict(hyper)}:
                known = cls([nn.Parameter(torch.zeros(1, dtype=torch.float32))]).defaults
                settings = {key: _checked(key, hyper[key]) for key in known if key in hyper} | {
                    key: value for key, value in PINNED.items() if key in known
                }
                _try(cls, settings)
                return {"params": [self._view(name, tensors) for name in names], **settings}
        raise PayloadError(f"an optimizer group must hold names and hyper; got {str(group)[:80]}")

    def _view(self, name: Any, tensors: Mapping[str, Tensor]) -> nn.Parameter:
        if not isinstance(name, str) or name not in tensors or name in self._named:
            raise PayloadError(f"optimizer names tensor {str(name)[:80]!r}, which is unknown or named twice")
        self._named[name] = nn.Parameter(tensors[name], requires_grad=True)
        return self._named[name]

    def check_report(self, report: Sequence[Any]) -> None:
        """Raises PayloadError unless `report` is what `hyper_of` makes of an optimizer like this one (or is empty)."""
        if len(report) not in (0, len(self._initial)):
            raise PayloadError(f"hyperparameters of {len(report)} groups; this optimizer has {len(self._initial)}")
        for group, initial in zip(report, self._initial, strict=False):
            if not isinstance(group, dict) or not all(
                key in initial and _is_report(pair, initial[key]) for key, pair in group.items()
            ):
                raise PayloadError(f"hyperparameters must be name: [now, initial]; got {str(group)[:80]}")

    def step(self, gradients: Mapping[str, Tensor], hyper: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """One step with name -> gradient (tensors without one are skipped, as torch does).

        `hyper` holds each live worker's last report; a rate is the initial rate of rank 0 times the median factor.
        Raises PayloadError for gradients that are not finite; nothing has changed then.
        """
        if not all(map(all_finite, gradients.values())):
            raise PayloadError(f"{type(self._optimizer).__name__}: NaN or infinity in the gradients")
        for index, group in enumerate(self._optimizer.param_groups):
            for key in SCHEDULED:
                if key in self._initial[index]:
                    reports = [r[index][key] for r in hyper if index < len(r) and key in r[index]]
                    group[key] = _median(key, self._initial[index][key], reports)
        for name, parameter in self._named.items():
            parameter.grad = gradients.get(name)
        self._optimizer.step()
        for parameter in self._named.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Every state tensor as `name/key`, for a checkpoint or a snapshot."""
        return {
            f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
            for name, parameter in self._named.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
            if value is not None
        }

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises PayloadError for a tensor that `load` could not put anywhere."""
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            if not key or name not in self._named or value.shape not in (torch.Size(), self._named[name].shape):
                raise PayloadError(f"optimizer state {path[:80]!r} of {tuple(value.shape)} fits no tensor of the run")

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. Raises PayloadError as `check_state`; nothing is changed then."""
        self.check_state(state)
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            self._optimizer.state[self._named[name]][key] = value.clone()


def torch_outers(records: Sequence[Any], tensors: Mapping[str, Tensor]) -> list[TorchOuter]:
    """The optimizers of a run, one for each record. Raises PayloadError, also when two of them step one tensor."""
    outers = [TorchOuter(record, tensors) for record in records]
    names = [name for outer in outers for name in outer.names]
    if not outers or len(names) != len(set(names)):
        raise PayloadError(f"gradient mode needs optimizers that share no tensor; got {len(outers)}")
    return outers


def _try(cls: Callable[..., torch.optim.Optimizer], settings: Mapping[str, Any]) -> None:
    """Let torch judge the settings of a group; in a group, unlike here, it believes them. Raises PayloadError."""
    accepted = inspect.signature(cls).parameters
    try:
        cls([nn.Parameter(torch.zeros(1, dtype=torch.float32))], **{k: v for k, v in settings.items() if k in accepted})
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise PayloadError(f"{getattr(cls, '__name__', cls)}: {error}") from error


def _checked(key: str, value: Any) -> Any:
    """A hyperparameter from the wire: number, boolean, None or a short list of numbers."""
    if isinstance(value, list) and len(value) <= 4:
        return tuple(_checked(key, v) for v in value)
    if value is None or isinstance(value, bool) or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    raise PayloadError(f"hyperparameter {key}: got {str(value)[:40]!r}, expected finite numbers")


def _median(key: str, initial: Any, reports: Sequence[Any]) -> Any:
    """The run's value of a scheduled hyperparameter: the initial one times the median factor for lr, else the median.

    A report is [value, that worker's initial value]. The factor is applied exactly when both started alike.
    """
    if not reports or initial is None or isinstance(initial, bool):
        return tuple(initial) if isinstance(initial, list) else initial
    if isinstance(initial, (list, tuple)):
        return tuple(median(_number(now[i]) for now, _ in reports) for i in range(len(initial)))
    if key == "lr":
        return median(now if start == initial or not start else initial * (now / start) for now, start in reports)
    return median(_number(now) for now, _ in reports)


def _is_report(pair: Any, initial: Any) -> bool:
    """Whether `pair` is [now, initial] for a hyperparameter that began as `initial`."""
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    if isinstance(initial, tuple):
        return all(isinstance(v, list) and len(v) == len(initial) and all(map(_finite, v)) for v in pair)
    if initial is None or isinstance(initial, bool):
        return all(value is None or isinstance(value, bool) for value in pair)
    now, start = pair
    return _finite(now) and _finite(start) and (not start or math.isfinite(initial * (now / start)))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise PayloadError(f"a scheduled hyperparameter must be a finite number; got {str(value)[:40]!r}")
