"""One way of making both ends, for every transport of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from certificates import certificate

from lightning_async import transport
from lightning_async.transport import Connection, Listener

START = {
    "tcp": "tcp://127.0.0.1:0",
    "memory": "memory://",
    "http": "http://127.0.0.1:0",
    "https": "https://127.0.0.1:0",
}
COPIES = {"http", "https"}  # what turns every message into text


@dataclass
class Ends:
    """Opens listeners and connections of one scheme and closes what is still open at the end."""

    scheme: str
    opened: list[Listener | Connection] = field(default_factory=list)

    def listen(self, url: str | None = None, **options: Any) -> Listener:
        if self.scheme == "https":
            options["certificate"] = certificate()
        self.opened.append(transport.listen(url or START[self.scheme], **options))
        return self.opened[-1]

    def connect(self, url: str, **options: Any) -> Connection:
        if self.scheme == "https":
            options["authority"] = certificate()
        self.opened.append(transport.connect(url, **options))
        return self.opened[-1]

    def close(self) -> None:
        for end in self.opened:
            end.close()
