"""What tests on the proving ground share. They run inside a guest that is a host of guests itself."""

from collections.abc import Callable, Iterator

import pytest

from pytest_kvmlab.drivers.usb_devices import HostBus, HostDevice
from tests.proving.inner.outside import Outside, eventually

Find = Callable[..., HostDevice]


@pytest.fixture
def outside() -> Outside:
    return Outside()


@pytest.fixture
def find() -> Find:
    """Finds a USB device of this host, by its kind and serial number."""

    def find(identity: str, serial: str | None = None) -> HostDevice:
        alike = [each for each in HostBus().devices() if (each.id, each.serial) == (identity, serial)]
        assert alike, f"{identity} is not plugged in"
        return alike[0]

    return find


def drivers() -> dict[str, frozenset[str]]:
    """The drivers of this host's kernel that have each device, by port; a program's has none."""
    return {device.port: device.drivers for device in HostBus().devices() if not HostBus().holder(device)}


@pytest.fixture(autouse=True)
def _the_host_has_all_back() -> Iterator[None]:
    """After each test every device is where it was before, with the driver that it had."""
    before = drivers()
    yield
    assert eventually(lambda: drivers() == before), f"before: {before}; after: {drivers()}"
