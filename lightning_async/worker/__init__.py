"""The worker's side of a run, free of Lightning."""

from lightning_async.worker.attach import Attachment
from lightning_async.worker.engine import Engine
from lightning_async.worker.optimizer import AsyncOptimizer
from lightning_async.worker.part import Identity
from lightning_async.worker.sampler import LeaseSampler, quota

__all__ = ["AsyncOptimizer", "Attachment", "Engine", "Identity", "LeaseSampler", "quota"]
