"""What the text of `compression` and `download_compression` means."""

from __future__ import annotations

import pytest

from lightning_async.codecs import codec, download_codec, upload_codec
from lightning_async.errors import ConfigError


@pytest.mark.parametrize("text", ["topk", "topk(density=0.02)", "randomk", "signsgd", "powersgd", "by_size"])
def test_an_upload_that_leaves_numbers_out_gets_feedback(text):
    assert codec(text).fold_back is None
    assert upload_codec(text) == codec(f"error_feedback({text})")


@pytest.mark.parametrize("text", ["chain(topk(0.1), int8)", "chain(randomk(0.1), int4)", "chain(powersgd(2), fp16)"])
def test_what_is_chained_behind_it_changes_nothing_in_that(text):
    assert upload_codec(text) == codec(f"error_feedback({text})")


@pytest.mark.parametrize("text", ["none", "fp16", "bf16", "int8", "int4", "auto", "by_size(int8, none)", "chain"])
def test_other_uploads_are_what_they_say(text):
    assert upload_codec(text) == codec(text)


def test_feedback_that_is_asked_for_stays_as_it_is_even_none():
    for text in ("error_feedback(topk(density=0.02), beta=0.95)", "error_feedback(topk, beta=0.0)"):
        assert upload_codec(text) == codec(text)
    assert upload_codec(codec("topk")) == codec("error_feedback(topk)")


def test_downloads_are_exact_where_uploads_are_and_sparse_where_they_are_not():
    assert download_codec(None, codec("none")) == codec("none")
    for upload in ("fp16", "error_feedback", "auto"):
        assert download_codec(None, codec(upload)) == codec("either(topk(density=0.05, values='int8'), int8)")
        assert download_codec("none", codec(upload)) == codec("none")
    assert download_codec("topk", codec("none")) == codec("topk")


@pytest.mark.parametrize("text", ["error_feedback", "auto", "error_feedback(int8)"])
def test_a_download_has_its_feedback_in_the_deltas_already(text):
    with pytest.raises(ConfigError, match="error feedback of its own"):
        download_codec(text, codec("none"))
