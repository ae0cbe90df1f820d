"""What tests of several folders share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for runs of this test's own; pytest's `tmp_path` is too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        monkeypatch.setenv("KVMLAB_RUNS", folder)
        yield Path(folder)
