"""A small worker, for other languages to be written after."""
