"""The tests in `inner` are no tests of this machine: they run in the guest that is a host of guests."""

from pathlib import Path

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.plugin.session import LabSession
from tests.proving.ground import load, provide

collect_ignore = ["inner"]

STICK = """
<disk type='file' device='disk'>
  <driver name='qemu' type='raw'/>
  <source file='{file}'/>
  <target dev='sdx' bus='usb'/>
</disk>
"""
# QEMU shows it to the guest only if there is something at the other end of the line: `null` is nothing.
CONVERTER = """
<serial type='file'>
  <source path='{file}'/>
  <target type='usb-serial' port='1'/>
</serial>
"""


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
    plug_in(shared_guest, shared_guest.machine.folder)
    return shared_guest


def plug_in(guest: Guest, folder: Path) -> None:
    (folder / "stick").write_bytes(b"stick".ljust(2**22, b"\0"))
    guest.domain.attachDevice(STICK.format(file=folder / "stick"))
    guest.domain.attachDevice(CONVERTER.format(file=folder / "line"))
