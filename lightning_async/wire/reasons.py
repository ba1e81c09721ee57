"""Why a request was refused (docs/protocol.md, section 5)."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """Why a request was refused; the codes are part of the protocol."""

    STALE = "stale"  # base version older than the staleness policy allows
    FUTURE = "future_base"  # base version that the server has not reached
    LAYOUT = "layout"  # tensors differ from the run's tensors
    CONFIG = "config"  # arguments contradict the run's configuration
    NOT_FINITE = "not_finite"  # NaN or infinity in an update
    LENGTH = "length"  # vector of another length than the layout says
    NORM = "norm"  # update far longer than this run's updates
    QUARANTINED = "quarantined"  # this worker's updates are not taken for a time
    PAYLOAD = "payload"  # bytes that do not decode
    SEQUENCE = "sequence"  # sequence number that was skipped or is older than the last receipt kept
    NAME = "duplicate_name"  # another live worker has this name
    STRANGER = "unknown_worker"  # not joined, or expired: say Hello again
    UNREADY = "not_ready"  # no parameters yet, or not the one asked to send them
    PROTOCOL = "protocol"  # message not allowed here
    VERSION = "protocol_version"  # this server speaks another version of the protocol
    LIMIT = "limit"  # a bound of the server would be passed
    DATASET = "dataset"  # data set of another length than the run's
    ROLE = "role"  # not allowed to this role
    LEASE = "lease"  # an update with samples that are not, or no longer, this worker's
    STOPPING = "stopping"  # the server is going away
    KEY = "key"  # this key may not do that: unknown, revoked, another's name, a role that has no right to it
    LOST = "lost"  # the run's server is gone, and none will come in its place
    INTERNAL = "internal"  # the server's own fault; it goes on
