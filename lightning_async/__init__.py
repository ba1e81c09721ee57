"""Train one model on machines that are far apart, unequal, unreliable and not all trusted.

    trainer = Trainer(strategy=AsyncWANStrategy(...))          # lightning.pytorch
    optimizer = AsyncOptimizer(torch.optim.AdamW(...), model, "tcp://10.0.0.5:5555")    # a plain PyTorch loop

`AsyncWANStrategy` is made on first use, so that a server starts without importing Lightning. It is the class for
`lightning.pytorch`, or for `pytorch_lightning` in a program that has imported only that one. Importing this package
also makes `Trainer(strategy="async_wan")` known to every Lightning that is imported already, or will be through here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lightning_async.version import VERSION

if TYPE_CHECKING:
    from lightning_async.config import RunConfig as RunConfig
    from lightning_async.keeping import StateDir as StateDir
    from lightning_async.strategy.lightning import AsyncWANStrategy as AsyncWANStrategy
    from lightning_async.worker import AsyncOptimizer as AsyncOptimizer

__version__ = VERSION
__all__ = ["AsyncOptimizer", "AsyncWANStrategy", "RunConfig", "StateDir"]


def __getattr__(name: str) -> Any:
    if name == "AsyncWANStrategy":
        value = _strategy()
    elif name == "AsyncOptimizer":
        from lightning_async.worker import AsyncOptimizer as value
    elif name == "StateDir":
        from lightning_async.keeping import StateDir as value
    elif name == "RunConfig":
        from lightning_async.config import RunConfig as value
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _strategy() -> Any:
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        from lightning_async.strategy.pytorch_lightning import AsyncWANStrategy
    else:
        from lightning_async.strategy.lightning import AsyncWANStrategy
    return AsyncWANStrategy


def _register() -> None:
    """Make the name "async_wan" known to the Lightnings that this program has imported."""
    if "lightning.pytorch" in sys.modules:
        import lightning_async.strategy.lightning
    if "pytorch_lightning" in sys.modules:
        import lightning_async.strategy.pytorch_lightning  # noqa: F401


_register()
