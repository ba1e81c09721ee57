"""What travels: the messages, their bytes, and which of them is allowed when (docs/protocol.md)."""
