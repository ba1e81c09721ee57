"""`chain`: the numbers that one codec keeps, coded by the next, as in `chain(topk(0.02), int8())`."""

from __future__ import annotations

from lightning_async.codecs.base import Codec
from lightning_async.codecs.dense import none
from lightning_async.errors import ConfigError


def chain(*codecs: Codec) -> Codec:
    """The first codec with its numbers coded by the second, and so on; of none, `none`. ConfigError where one can't."""
    if not codecs:
        return none()
    *earlier, last = codecs
    for codec in reversed(earlier):
        if codec.then is None:
            raise ConfigError(
                f"chain got {codec.spec} before {last.spec}, but it leaves no numbers to code; put it last"
            )
        last = codec.then(last)
    return last
