"""Measurements: every module here with a `rows()` function yields dictionaries; `make bench` prints them."""
