"""Options that come from the fields of a configuration."""

from __future__ import annotations

import argparse
from dataclasses import fields

import pytest

from lightning_async.cli.options import add_fields, descriptions, given, reader
from lightning_async.cli.place import Place
from lightning_async.config import RunConfig


def read(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_fields(parser, RunConfig, "run")
    add_fields(parser, Place, "place")
    args = parser.parse_args(words)
    return {**given(args, RunConfig), **given(args, Place)}


@pytest.mark.parametrize("kind", [RunConfig, Place])
def test_every_field_is_described_in_its_docstring(kind: type) -> None:
    assert list(descriptions(kind)) == [field.name for field in fields(kind)]
    assert all(len(text) > 10 for text in descriptions(kind).values())


def test_a_description_of_several_lines_is_whole() -> None:
    assert descriptions(RunConfig)["submit"].endswith("the server's copy of that optimizer steps.")


def test_what_was_not_given_stays_out() -> None:
    assert read() == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--quorum", "all"), {"quorum": "all"}),
        (("--quorum", "3"), {"quorum": 3}),
        (("--total-steps", "none"), {"total_steps": None}),
        (("--total-steps", "10"), {"total_steps": 10}),
        (("--grace-s", "1.5"), {"grace_s": 1.5}),
        (("--compression", "none"), {"compression": "none"}),
        (("--download-compression", "none"), {"download_compression": "none"}),
        (("--submit", "gradient"), {"submit": "gradient"}),
        (("--state-dir", "none"), {"state_dir": None}),
        (("--public",), {"public": True}),
        (("--no-public",), {"public": False}),
    ],
)
def test_values_are_read_as_their_annotation_says(words: tuple[str, ...], expected: dict[str, object]) -> None:
    assert read(*words) == expected


@pytest.mark.parametrize("words", [("--quorum", "some"), ("--submit", "both"), ("--workers", "1.5")])
def test_other_values_are_refused(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(*words)
    assert repr(words[1]) in capsys.readouterr().err


def test_reader_says_what_it_expects() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"got 'x', expected N\|none"):
        reader(int | None)("x")
