"""Hostile bytes for everything that reads what came over the wire: `python -m fuzz`."""
