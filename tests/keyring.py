"""Keys for tests: a server's folder, and keys that are on its list or are not."""

from __future__ import annotations

from pathlib import Path

from lightning_async.files import write_private
from lightning_async.transport import allowed
from lightning_async.transport.allowed import Caller
from lightning_async.transport.keys import Key, Pair, write_key, write_server
from lightning_async.transport.zeromq_curve import new_pair


class Keyring:
    """A server's keys in a new `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server = folder, new_pair()
        write_server(folder, self.server)
        allowed.begin(folder)

    def key(self, name: str, role: str = "worker", workers: int = 1, address: str = "") -> Key:
        """One that is on the list."""
        key = Key(name, role, new_pair(), self.server.public, address, workers)
        allowed.allow(self.folder, key.pair.public, Caller(name, role, workers))
        return key

    def stranger(self, server: Pair | None = None) -> Key:
        """One that is not; for another server, if one is given."""
        return Key("stranger", "worker", new_pair(), (server or self.server).public)

    def file(self, key: Key, path: Path) -> Path:
        """`path`, where `key` is now."""
        write_key(path, key)
        return path

    def revoke(self, name: str) -> None:
        allowed.revoke(self.folder, name)

    def edit(self, before: str, after: str) -> None:
        """What the server's owner does with a text editor."""
        path = self.folder / allowed.FILE
        text = path.read_text()
        assert before in text
        write_private(path, text.replace(before, after))
