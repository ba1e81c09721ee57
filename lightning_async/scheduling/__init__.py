"""Who trains on which samples."""

from lightning_async.scheduling.stream import Stream, permutation

__all__ = ["Stream", "permutation"]
