"""What can be wrong between here and a server, and what to do about each: the table behind `lightning-async doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_async.errors import AsyncWANError
from lightning_async.transport.keys import HOW_TO_JOIN

CURES: dict[str, str] = {
    "host_unknown": "Check the spelling, and that this machine's DNS works; an IP address needs no DNS",
    "port_closed": "Start `lightning-async serve` there, or dial the port that it printed; a server on loopback is "
    "reached from its own machine only",
    "no_route": "A firewall, a router or a host that is off: check that the server's host lets this TCP port in and "
    "that this network lets it out; where only HTTP passes, have the server listen at an http:// address too",
    "not_ours": "Something else has this port: give the port that `lightning-async serve` printed",
    "http_there": "This server listens for HTTP at this port: dial http://, or its tcp:// address",
    "http_token": "Give the server's token in $LIGHTNING_ASYNC_HTTP_TOKEN; its owner has it in a file",
    "certificate": "Name who has signed the server's certificate in $SSL_CERT_FILE; where the server asks for one of "
    "ours, in $LIGHTNING_ASYNC_HTTP_CERTIFICATE",
    "key_file": "See the text above",
    "needs_key": HOW_TO_JOIN,
    "no_keys_there": 'Is it the right server? If its owner means it, inside a network that you trust, say --key "none"',
    "wrong_server_key": "Either the server's keys were made anew, then ask its owner for a new invitation, or somebody "
    "else answers at its address, then do not go on",
    "key_refused": f"Ask the server's owner whether this key was revoked, or never put onto its list. {HOW_TO_JOIN}",
    "server_older": "Update lightning_async on the server, or use the older version here",
    "server_newer": "Update lightning_async here",
    "no_answer": "The server is stuck or very busy, or something between lets connections through and no data: look at "
    "its log, and at `lightning-async status`",
    "line_lost": "The line broke while it was measured: try again; workers bear that, and go on where they were",
    "layout": "Start from the same model code as the run's first worker",
    "memory": "Close other programs, take a machine or a container with more memory, or a smaller model",
    "clock": "Set this machine's clock by NTP, or the server's: no round depends on it, but certificates, the time "
    "that invitations are good for, and logs that are read side by side do",
    "ended": "Start another run, or the server with more total_steps or epochs",
}


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong. `code` is a key of CURES."""

    code: str
    what: str

    @property
    def do(self) -> str:
        return CURES[self.code]


class Ill(AsyncWANError):
    """There is no point in looking further."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.trouble = Trouble(code, what)
