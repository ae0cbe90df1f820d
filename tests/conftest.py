"""What tests of several folders share."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Let Ctrl-C end what tests start; a shell that runs them in the background has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for runs of this test's own; pytest's `tmp_path` is too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        monkeypatch.setenv("KVMLAB_RUNS", folder)
        yield Path(folder)
