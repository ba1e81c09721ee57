"""`python -m lightning_async ...` is the same as `lightning-async ...`."""

import sys

from lightning_async.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
