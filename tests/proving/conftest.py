"""The tests in `inner` are no tests of this machine: they run in the guest that is a host of guests."""

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.plugin.session import LabSession
from tests.proving.ground import load, plug_in, provide

collect_ignore = ["inner"]


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> LabSession:
    """The session that the outer guest is of."""
    session = request.config.pluginmanager.get_plugin("kvmlab-session")
    assert isinstance(session, LabSession)
    return session


@pytest.fixture(scope="module")
def ground(shared_guest: Guest, session: LabSession, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """A host of guests with everything on it, and QEMU's own stick and serial converter plugged in."""
    folder = tmp_path_factory.mktemp("ground")
    load(folder, session.run.launcher)
    provide(shared_guest, folder)
    plug_in(shared_guest)
    return shared_guest
