"""The README says nothing that is not there: its Python compiles, its commands, targets, options and links exist."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401  sets an environment variable on its first import
import pytest
import yaml

from lightning_async.cli.main import COMMANDS
from lightning_async.cli.main import parser as command_line

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced code of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands(word: str) -> list[list[str]]:
    """The shell lines that begin with `word`, split, without comments."""
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and line[0] == word]


def test_every_kind_of_block_is_there() -> None:
    assert len(blocks("python")) >= 2
    assert len(blocks("yaml")) >= 2
    assert len(commands("make")) >= 4


@pytest.mark.parametrize("code", blocks("python"))
def test_python_compiles_and_imports_public_names(code: str) -> None:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("line", commands("make"), ids=" ".join)
def test_make_targets_exist(line: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(line[1:]) <= targets


@pytest.mark.parametrize("line", commands("lightning-async"), ids=" ".join)
def test_subcommands_take_these_arguments(line: list[str]) -> None:
    assert line[1] in COMMANDS
    command_line().parse_args(line[1:])


@pytest.mark.parametrize("line", [c for c in commands("python") if c[1] == "-m"], ids=" ".join)
def test_modules_that_are_run_exist_and_take_these_options(line: list[str]) -> None:
    module: Any = importlib.import_module(line[2])
    assert callable(module.main)
    options: argparse.ArgumentParser | None = module.parser() if hasattr(module, "parser") else None
    if options is not None:
        options.parse_args(line[3:])


@pytest.mark.parametrize("code", blocks("yaml"))
def test_yaml_is_read_by_what_it_is_for(code: str) -> None:
    values = yaml.safe_load(code)
    if "trainer" in values:
        from lightning_async import AsyncWANStrategy

        AsyncWANStrategy(**values["trainer"]["strategy"]["init_args"])
    else:
        from lightning_async.config import read_config

        read_config(values)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", TEXT))
def test_linked_files_exist(target: str) -> None:
    assert (ROOT / target).exists()
