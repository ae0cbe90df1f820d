"""The virtual USB devices that a lab file can name."""

from collections.abc import Mapping

from pytest_kvmlab.drivers.usb_requests import ControlRequest, UsbStall
from pytest_kvmlab.drivers.virtual_usb_device import VirtualUsbDevice

READ_LICENCE = (0xC0, 1)
"""Request type (vendor, device, IN) and request with which `LicenceDongle` is asked for its number."""


class LicenceDongle(VirtualUsbDevice):
    """A licence dongle: a device of the vendor's own class that tells its licence number to whoever asks.

    Attributes:
        licence: the number, in ASCII.
    """

    manufacturer = "pytest-kvmlab"
    product = "Licence dongle"
    licence: str = "KVMLAB-2110"

    def control_in(self, request: ControlRequest) -> bytes:
        """Answer the request for the licence number."""
        if (request.request_type, request.request) != READ_LICENCE:
            raise UsbStall
        return self.licence.encode("ascii")


MODELS: Mapping[str, type[VirtualUsbDevice]] = {"licence": LicenceDongle}
"""By the name that stands in a lab file: `{ virtual = "licence", … }`."""
