"""Vectors to bytes and back: `codec("topk")` is a Codec, `CODECS` the table of the family."""

from __future__ import annotations

from lightning_async.codecs.auto import auto
from lightning_async.codecs.base import Codec, Ladder, Payload, State, bind
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
from lightning_async.codecs.table import CODECS, codec, download_codec, upload_codec
from lightning_async.codecs.topk import topk

__all__ = [
    "CODECS",
    "Codec",
    "Ladder",
    "Payload",
    "State",
    "auto",
    "bf16",
    "bind",
    "by_size",
    "chain",
    "codec",
    "download_codec",
    "either",
    "error_feedback",
    "fp16",
    "int4",
    "int8",
    "none",
    "packed",
    "powersgd",
    "randomk",
    "signsgd",
    "topk",
    "upload_codec",
]
