"""The shipped labs: their own tests by the command, and their fixtures in a suite of somebody else's."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvmlab.lab.run import open_store
from pytest_kvmlab.plugin.session import LabSession

pytestmark = pytest.mark.timeout(3600)

SUITE = {
    "conftest.py": 'pytest_plugins = ["pytest_kvmlab.fixtures.service"]\n',
    "test_ours.py": """
import pytest
from pytest_kvmlab.fixtures.service import Measurement

pytestmark = pytest.mark.kvm(lab="service")

def test_our_readings(measurement: Measurement) -> None:
    assert measurement.ask("RECORD roof 21", "MEAN roof") == ["RECORDED 1", "MEAN 21 of 1"]
""",
}


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Runs of our own, with this run's images; what the runs leave behind is a failure."""
    session = request.config.pluginmanager.get_plugin("kvmlab-session")
    assert isinstance(session, LabSession)
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as runs:
        store = open_store(session.options.store).root.absolute()
        yield {**os.environ, "KVMLAB_RUNS": runs, "KVMLAB_STORE": str(store)}
        assert not list(Path(runs).iterdir())


def ran(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a command printed; it has to succeed."""
    found = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3000, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_the_command_runs_the_tests_of_a_shipped_lab(tmp_path: Path, environment: dict[str, str]) -> None:
    kvmlab = str(Path(sys.executable).with_name("kvmlab"))
    assert "passed" in ran([kvmlab, "lab", "test", "licence"], tmp_path, environment)


def test_a_suite_of_somebody_else_uses_a_shipped_lab(tmp_path: Path, environment: dict[str, str]) -> None:
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text)
    pytest_ = [sys.executable, "-m", "pytest", "--kvm-lab", "-p", "no:cacheprovider"]
    assert "1 passed" in ran(pytest_, tmp_path, environment)
