"""One error tree. Its three branches say whose fault it was: our caller's, the peer's, or the network's."""

from __future__ import annotations


class AsyncWANError(Exception):
    """Root of every error that this package raises on purpose."""


class CallerError(AsyncWANError):
    """The code or the configuration that called us is wrong; the text says got, expected, do."""


class ConfigError(CallerError, ValueError):
    """An argument, a spec string or a configuration file cannot be used."""


class LayoutError(CallerError):
    """The model's tensors differ from the tensors of the run."""


class PeerError(AsyncWANError):
    """What the other side sent is wrong or hostile; nothing of it was applied."""


class PayloadError(PeerError, ValueError):
    """Bytes that do not decode to a vector of this run: truncated, altered, or of another layout."""


class ProtocolError(PeerError):
    """A message that docs/protocol.md does not allow."""


class RefusedError(PeerError):
    """The server refused a request. `reason` is its code from `wire.messages.Reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{detail} [{reason}]")
        self.reason = reason
        self.detail = detail


class NetworkError(AsyncWANError):
    """The network, not a program, is at fault."""


class UnreachableError(NetworkError, TimeoutError):
    """Nobody answered within the time allowed; the text says how long, and what to check."""
