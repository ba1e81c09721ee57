"""Both ends of a transport, for every suite that runs over the table of transports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from wires import Ends

from lightning_async.transport import TRANSPORTS


@pytest.fixture(params=TRANSPORTS)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made = Ends(request.param)
    yield made
    made.close()
