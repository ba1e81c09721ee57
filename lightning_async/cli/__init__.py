"""The command line, `lightning-async`: one file for each subcommand, listed in main.py."""
