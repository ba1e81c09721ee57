"""Calls and answers of XML-RPC as text, read by a parser that refuses entities, DTDs and external references.

Rule of this file: what comes from outside becomes plain values or a ProtocolError, whatever it holds. The size of the
text is bounded by whoever read it from its socket.
"""

from __future__ import annotations

import xmlrpc.client
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from defusedxml.xmlrpc import DefusedExpatParser

from lightning_async.errors import ProtocolError
from lightning_async.transport.base import Frame

Parcel = list[bytes]
LONGEST_EPOCH = 64


def call(method: str, *values: Any) -> bytes:
    """The text of a call."""
    return xmlrpc.client.dumps(tuple(values), method).encode()


def answer(value: Any) -> bytes:
    """The text of its answer."""
    return xmlrpc.client.dumps((value,), methodresponse=True).encode()


def read_call(text: bytes) -> tuple[str, tuple[Any, ...]]:
    """(method, values) of a call. Raises ProtocolError."""
    values, method = _read(text)
    if not isinstance(method, str):
        raise ProtocolError("an XML-RPC call without a method")
    return method, values


def read_answer(text: bytes) -> Any:
    """The value in an answer. Raises ProtocolError."""
    values, method = _read(text)
    if method is not None or len(values) != 1:
        raise ProtocolError("an XML-RPC answer that is none")
    return values[0]


def plain(frames: Sequence[Frame]) -> Parcel:
    """A message as values that XML-RPC has."""
    return [bytes(frame) for frame in frames]


def parcel(value: Any) -> Parcel:
    """A message that came. Raises ProtocolError."""
    if not isinstance(value, list) or not value or not all(isinstance(frame, bytes) for frame in value):
        raise ProtocolError("a message that is no list of bytes")
    return value


@dataclass(frozen=True)
class Polled:
    """An answer to a poll: the server's life, and messages with their numbers."""

    epoch: str
    messages: list[tuple[int, Parcel]]


def polled(value: Any) -> Polled:
    """Raises ProtocolError for what is no answer to a poll."""
    if not isinstance(value, list) or len(value) != 2:
        raise ProtocolError(f"an answer to a poll that is a {type(value).__name__}")
    epoch, messages = value
    if not isinstance(epoch, str) or len(epoch) > LONGEST_EPOCH or not isinstance(messages, list):
        raise ProtocolError("an answer to a poll without an epoch and messages")
    return Polled(epoch, [_numbered(each) for each in messages])


def _numbered(value: Any) -> tuple[int, Parcel]:
    if not isinstance(value, list) or len(value) != 2 or type(value[0]) is not int:
        raise ProtocolError("a message without a number")
    return value[0], parcel(value[1])


def taken(value: Any) -> bool:
    """The answer to a put. Raises ProtocolError for any other value."""
    if not isinstance(value, bool):
        raise ProtocolError(f"an answer to a put that is a {type(value).__name__}")
    return value


def _read(text: bytes) -> tuple[tuple[Any, ...], str | None]:
    target = xmlrpc.client.Unmarshaller(use_builtin_types=True)
    try:
        parser = DefusedExpatParser(target, forbid_dtd=True)
        parser.feed(text)
        parser.close()
        return target.close(), target.getmethodname()
    except Exception as error:  # expat, defusedxml and the unmarshaller raise whatever came to their authors' minds
        raise ProtocolError(f"not XML-RPC: {type(error).__name__}: {str(error)[:100]}") from None
