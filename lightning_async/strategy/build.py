"""AsyncWANStrategy over one of Lightning's two namespaces: `lightning.pytorch` or `pytorch_lightning`.

Their class hierarchies and registries know nothing of each other, so the strategy exists once for each, from the same
hooks. Everything that touches a name of Lightning's own is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lightning_async.strategy import launch
from lightning_async.strategy.callback import FirstHooks
from lightning_async.strategy.hooks import AsyncWANHooks
from lightning_async.strategy.session import Session

NAMESPACES = {"lightning.pytorch": "lightning", "pytorch_lightning": "pytorch_lightning"}  # and our module for each


def build(pytorch: str, fabric: str, module: str) -> Any:
    """The strategy class for the namespaces `pytorch` and `fabric`, at home in `module`; it is registered there."""
    strategies = import_module(f"{pytorch}.strategies")
    launchers = import_module(f"{pytorch}.strategies.launchers.subprocess_script")
    callbacks = import_module(f"{pytorch}.callbacks")
    rank_zero = import_module(f"{fabric}.utilities.rank_zero")
    threads = import_module(f"{fabric}.utilities.distributed")

    other = next(name for name in NAMESPACES if name != pytorch)
    hint = f"for {other}: from lightning_async.strategy.{NAMESPACES[other]} import AsyncWANStrategy"

    class First(FirstHooks, callbacks.Callback):  # type: ignore[misc,name-defined]
        """The strategy's callback."""

    class ElasticLauncher(launchers._SubprocessScriptLauncher):  # type: ignore[misc,name-defined]
        """Starts the other ranks; one that dies does not take the others with it, so there is no observer."""

        def __init__(self, strategy: Any) -> None:
            super().__init__(strategy.cluster_environment, strategy.num_processes, strategy.num_nodes)
            self._address = strategy.server or os.environ.get(launch.SERVER, "")

        def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
            environment = self.cluster_environment
            environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
            if not environment.creates_processes_externally:
                with launch.told(self._address):
                    self._call_children_scripts()
            threads._set_num_threads_if_needed(num_processes=self.num_processes)
            return function(*args, **kwargs)

    class AsyncWANStrategy(AsyncWANHooks, strategies.SingleDeviceStrategy):  # type: ignore[misc,name-defined]
        __doc__ = AsyncWANHooks.__doc__

        def __repr__(self) -> str:
            return f"<AsyncWANStrategy for {pytorch} | {self.summary()} | {hint}>"

        def _make_launcher(self) -> ElasticLauncher:
            return ElasticLauncher(self)

        def _make_callback(self, session: Session) -> First:
            return First(session)

        def _tell_rank(self, rank: int) -> None:
            rank_zero.rank_zero_only.rank = rank

        @classmethod
        def register_strategies(cls, strategy_registry: Any) -> None:
            text = "asynchronous training with far-apart workers over a parameter server"
            strategy_registry.register(cls.strategy_name, cls, description=text)

    for cls in (First, ElasticLauncher, AsyncWANStrategy):
        cls.__module__, cls.__qualname__ = module, cls.__name__
    if AsyncWANStrategy.strategy_name not in strategies.StrategyRegistry:
        AsyncWANStrategy.register_strategies(strategies.StrategyRegistry)
    return AsyncWANStrategy
