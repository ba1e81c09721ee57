"""Experiments whose numbers stand in docs/results.md; each is one command that prints them."""
