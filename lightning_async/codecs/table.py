"""The table of the family, and how text becomes a codec."""

from __future__ import annotations

from collections.abc import Callable

from lightning_async import spec
from lightning_async.codecs.base import Codec
from lightning_async.codecs.by_size import by_size
from lightning_async.codecs.chain import chain
from lightning_async.codecs.dense import bf16, fp16, none
from lightning_async.codecs.feedback import error_feedback
from lightning_async.codecs.integers import int4, int8
from lightning_async.codecs.lowrank import powersgd
from lightning_async.codecs.randomk import randomk
from lightning_async.codecs.signs import signsgd
from lightning_async.codecs.topk import topk

CODECS: dict[str, Callable[..., Codec]] = {
    "none": none,
    "fp16": fp16,
    "bf16": bf16,
    "int8": int8,
    "int4": int4,
    "topk": topk,
    "randomk": randomk,
    "signsgd": signsgd,
    "powersgd": powersgd,
    "chain": chain,
    "error_feedback": error_feedback,
    "by_size": by_size,
}

SHORT = {"topk": "error_feedback(topk())"}


def codec(member: str | Codec) -> Codec:
    """The codec that a short name or spec means; a Codec passes through. ConfigError for anything else.

    The bare name "topk" means top-k with error feedback, because training needs it; a spec means what it says.
    """
    if isinstance(member, Codec):
        return member
    return spec.parse(SHORT.get(member.strip(), member), CODECS, "codec")
