"""Runnable examples: `gpt2` (a language model, the demo) and `digits` (a small network with BatchNorm)."""
