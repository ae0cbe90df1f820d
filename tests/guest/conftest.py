"""What several tests of guests need, below the fixtures that users have."""

import pytest

from pytest_kvmlab.lab.launch import Launcher


@pytest.fixture(scope="session")
def launcher(request: pytest.FixtureRequest) -> Launcher:
    """What starts the guests of this run, for tests that choose more than a mark can say."""
    launcher = request.config.pluginmanager.getplugin("kvmlab-session").run.launcher
    assert isinstance(launcher, Launcher)
    return launcher
