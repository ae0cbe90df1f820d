"""Plays a virtual dongle for a guest that stays after its test: a process that ends with the guest.

Run as `python -m pytest_kvmlab.lab.usb_left MODEL IDENTITY SERIAL SOCKET`.
"""

import math
import sys
from contextlib import suppress
from pathlib import Path
from threading import TIMEOUT_MAX

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.program import leave_running
from pytest_kvmlab.drivers.usb_models import MODELS
from pytest_kvmlab.drivers.virtual_usb_device import VirtualUsbDevice
from pytest_kvmlab.errors import UsbError
from pytest_kvmlab.lab.waits import until

_EVERY_SECONDS = 1.0


def play_on(device: VirtualUsbDevice, socket: Path) -> None:
    """Have another process play a dongle from now on, which its guest sees go and come back.

    Args:
        device: the dongle, unplugged; one of a class of the test's own is not played any more.
        socket: where QEMU listens for it.
    """
    for model, made in MODELS.items():
        if type(device) is made:
            leave_running(__spec__.name, model, device.identity, device.serial, str(socket))


def main() -> None:
    """Play the dongle until QEMU hangs up."""
    model, identity, serial, socket = sys.argv[1:]
    device = MODELS[model](identity, serial=serial)
    with device.serve(Path(socket)), suppress(UsbError):  # QEMU hung up before
        device.wait_until_configured(timeout=TIMEOUT_MAX)
        until(lambda: None if device.is_plugged else True, Deadline(math.inf), every=_EVERY_SECONDS)


if __name__ == "__main__":
    main()
