"""Who trains on which samples, and how much between two updates."""

from lightning_async.scheduling.rounds import SIZINGS, Sizing, Speed, auto, sizing
from lightning_async.scheduling.stream import Stream, permutation

__all__ = ["SIZINGS", "Sizing", "Speed", "Stream", "auto", "permutation", "sizing"]
