"""Whoever is outside of this host, and has its dongles in hand."""

import time
from collections.abc import Callable
from pathlib import Path

REQUEST = Path("/run/proving/request")
SECONDS = 120.0


def eventually(attempt: Callable[[], bool]) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + SECONDS
    while not (done := attempt()) and time.monotonic() < end:
        time.sleep(0.2)
    return done


class Outside:
    """Pulls dongles out of this host, and puts them back: the test that has started it looks for requests."""

    def pull(self, dongle: str) -> None:
        self._ask(f"unplug {dongle}")

    def put_back(self, dongle: str) -> None:
        self._ask(f"plug {dongle}")

    def _ask(self, what: str) -> None:
        fresh = REQUEST.with_suffix(".new")
        fresh.write_text(what)
        fresh.rename(REQUEST)
        assert eventually(lambda: not REQUEST.exists()), f"nobody did it: {what}"
