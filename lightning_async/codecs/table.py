"""The table of the family, and how text becomes a codec."""

from __future__ import annotations

from collections.abc import Callable

from lightning_async import spec
from lightning_async.codecs.base import Codec
from lightning_async.codecs.dense import bf16, fp16, none
from lightning_async.codecs.integers import int4, int8

CODECS: dict[str, Callable[..., Codec]] = {
    "none": none,
    "fp16": fp16,
    "bf16": bf16,
    "int8": int8,
    "int4": int4,
}


def codec(member: str | Codec) -> Codec:
    """The codec that a short name or spec means; a Codec passes through. ConfigError for anything else."""
    return member if isinstance(member, Codec) else spec.parse(member, CODECS, "codec")
