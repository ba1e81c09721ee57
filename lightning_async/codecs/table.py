"""The table of the family, and how text becomes a codec: any, that of uploads, that of downloads."""

from __future__ import annotations

from collections.abc import Callable

from lightning_async import spec
from lightning_async.codecs.auto import auto
from lightning_async.codecs.base import Codec
from lightning_async.codecs.by_size import by_size
from lightning_async.codecs.chain import chain
from lightning_async.codecs.dense import bf16, fp16, none
from lightning_async.codecs.either import either
from lightning_async.codecs.feedback import error_feedback
from lightning_async.codecs.integers import int4, int8
from lightning_async.codecs.lowrank import powersgd
from lightning_async.codecs.packed import packed
from lightning_async.codecs.randomk import randomk
from lightning_async.codecs.signs import signsgd
from lightning_async.codecs.topk import topk
from lightning_async.errors import ConfigError

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
    "either": either,
    "packed": packed,
    "auto": auto,
}


def codec(member: str | Codec) -> Codec:
    """The codec that a name or spec means, to the letter; a Codec passes through. ConfigError for anything else."""
    return member if isinstance(member, Codec) else spec.parse(member, CODECS, "codec")


def upload_codec(member: str | Codec) -> Codec:
    """The codec of what workers send: as `codec`, and error feedback around one that training cannot do without.

    So `compression="topk"`, and "topk(density=0.02)" too, mean `error_feedback(topk(...))`. Who wants to see what
    happens without writes `error_feedback(topk(), beta=0.0)`.
    """
    made = codec(member)
    return error_feedback(made) if made.needs_feedback else made


def download_codec(member: str | Codec | None, upload: Codec) -> Codec:
    """The codec of the deltas that the server sends; None: exact where uploads are, else `either()`: top-k 5 % with
    int8 values, or dense int8 for a delta of which that would carry too little.

    ConfigError for one with error feedback: what a delta left out is in the next one already, because the server
    encodes true - published, and a second residual would send it twice.
    """
    if member is None:
        return none() if upload.lossless else either()
    made = codec(member)
    if made.fold_back is not None:
        raise ConfigError(
            f"download_compression got {made.spec}, which has error feedback of its own; what a delta leaves out is in "
            "the next one anyway, so give a codec without, such as 'topk(density=0.05)'"
        )
    return made
