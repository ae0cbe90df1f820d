"""A request to a USB device, and its refusal.

Source: Universal Serial Bus Specification 2.0, section 9.3.
"""

from dataclasses import dataclass


class UsbStall(Exception):
    """Raised by a device that does not support a request, or takes no more data: the guest sees a STALL."""


@dataclass(frozen=True)
class ControlRequest:
    """The setup packet of a control transfer.

    Attributes:
        request_type: bmRequestType: direction, type and recipient in one byte.
        request: bRequest.
        value: wValue.
        index: wIndex.
        length: wLength: how many bytes come along, or are asked for.
    """

    request_type: int
    request: int
    value: int
    index: int
    length: int
