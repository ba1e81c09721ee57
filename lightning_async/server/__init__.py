"""The parameter server: a pure coordinator, and the service that gives it a socket and a clock."""

from lightning_async.server.coordinator import Coordinator
from lightning_async.server.host import ServerThread
from lightning_async.server.keeper import Keeper
from lightning_async.server.service import Service

__all__ = ["Coordinator", "Keeper", "ServerThread", "Service"]
