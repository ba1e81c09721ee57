"""Vectors to bytes and back: `codec("topk")` is a Codec, `CODECS` the table of the family."""

from __future__ import annotations

from lightning_async.codecs.base import Codec, Ladder, Payload, State, bind
from lightning_async.codecs.table import CODECS, codec, download_codec, upload_codec

__all__ = ["CODECS", "Codec", "Ladder", "Payload", "State", "bind", "codec", "download_codec", "upload_codec"]
