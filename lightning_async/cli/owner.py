"""What the owner of a server brings: a secret and a token, kept in the state_dir, and a validation function.

The file `owner.json` in the state_dir is made once and is for the owner alone (mode 600). Who can read it may give
orders to the server (`lightning-async pardon`), and can foresee what only the server should.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_async.errors import ConfigError
from lightning_async.files import write_private

if TYPE_CHECKING:
    from lightning_async.server.private import Private

FILE = "owner.json"


def private_of(folder: Path | None, validation: str | None) -> Private:
    """The private part of a server with this state_dir. Raises ConfigError for what cannot be read or imported."""
    from lightning_async.server.private import Private

    function = imported(validation) if validation else None
    if folder is None:
        return Private(secrets.randbits(62), function)
    kept = _kept(folder / FILE)
    return Private(kept["secret"], function, kept["token"])


def token_in(folder: Path) -> str:
    """The token of the server whose state_dir this is. Raises ConfigError when there is none."""
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(
            f"no {path}; give the state_dir that the server was started with, on its own machine. A server without "
            "one takes no owner's requests"
        )
    return str(_read(path)["token"])


def imported(text: str, what: str = "validation") -> Callable[..., Any]:
    """The function that "package.module:function" names, also from the current folder. Raises ConfigError, which says
    that it is for `what`."""
    module, _, name = text.partition(":")
    if not module or not name:
        raise ConfigError(f'{what}: got {text!r}, expected "module:function"')
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{what}: cannot import {text!r}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{what}: {text!r} is {found!r}, expected a function")
    return found  # type: ignore[no-any-return]


def _kept(path: Path) -> dict[str, Any]:
    """What is in `path`, made the first time: whole or not at all, whenever this process dies."""
    if path.exists():
        return _read(path)
    made = {"secret": secrets.randbits(62), "token": secrets.token_urlsafe(24)}
    write_private(path, json.dumps(made))
    return made


def _read(path: Path) -> dict[str, Any]:
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        return {"secret": int(made["secret"]), "token": str(made["token"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; remove it to get a new one") from error
