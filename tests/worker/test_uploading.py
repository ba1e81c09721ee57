"""Refused payloads: what goes with the next update, and what must never come back."""

from __future__ import annotations

import pytest
import torch

from lightning_async.codecs import upload_codec
from lightning_async.layout import read_manifest
from lightning_async.wire.messages import Push
from lightning_async.worker.uploading import Uploads

LAYOUT = read_manifest([["w", [64], "float32", "parameter"]])


def push(seq: int) -> Push:
    return Push(seq=seq, base=0, digest=LAYOUT.digest)


@pytest.mark.parametrize("spec", ["topk(density=0.1)", "auto"])
def test_what_is_refused_comes_back_but_not_what_was_lost(spec: str) -> None:
    codec = upload_codec(spec)
    first = torch.linspace(-1.0, 1.0, 64)
    sent = {}
    for thrown in (False, True):
        uploads = Uploads(codec, LAYOUT)
        payload = uploads.encode(push(1), first.clone())
        assert uploads.refused(push(1), payload, first if thrown else None) is not thrown
        again = uploads.encode(push(2), torch.zeros(64))
        sent[thrown] = float(codec.decode(again, 64).abs().sum())
    assert sent[False] > 1.0, "the progress of a refused update is in the next one"
    assert sent[True] < 1e-5, "that of samples which are somebody else's now is not, in no part"


def test_without_a_residual_nothing_is_kept() -> None:
    uploads = Uploads(upload_codec("none"), LAYOUT)
    payload = uploads.encode(push(1), torch.ones(64))
    assert not uploads.refused(push(1), payload)
    assert not uploads.refused(push(1), payload, torch.ones(64))
