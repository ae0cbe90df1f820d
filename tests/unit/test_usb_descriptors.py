"""What a virtual device says of itself."""

from typing import Any

import pytest

from pytest_kvmlab import UsbEndpoint, UsbInterface, VirtualUsbDevice
from pytest_kvmlab.drivers.usb_descriptors import Description
from pytest_kvmlab.errors import ConfigError

HID = bytes.fromhex("09 21 1101 00 01 22 2200")


def described(**wanted: Any) -> Description:
    facts: dict[str, Any] = {
        "identity": "0a5e:2110",
        "serial": "A1",
        "manufacturer": "Maker",
        "product": "Ding",
        "version": "2.10",
        "speed": "full",
        "device_class": (0, 0, 0),
        "interfaces": (UsbInterface(),),
    }
    return Description(**facts | wanted)


def test_the_device_descriptor_is_as_the_specification_says() -> None:
    expected = "12 01 0002 00 00 00 40 5e0a 1021 1002 01 02 03 01"
    assert described().descriptor(1, 0) == bytes.fromhex(expected)


def test_the_configuration_holds_interfaces_class_descriptors_and_endpoints() -> None:
    endpoints = (UsbEndpoint(0x81, "interrupt", packet_size=8, interval=4), UsbEndpoint(0x02))
    description = described(interfaces=(UsbInterface(3, 1, 2, endpoints, HID, "Keys"), UsbInterface()))
    assert description.descriptor(2, 0) == bytes.fromhex(
        "09 02 3200 02 01 00 80 32"
        "09 04 00 00 02 03 01 02 04"
        "09 21 1101 00 01 22 2200"
        "07 05 81 03 0800 04"
        "07 05 02 02 4000 00"
        "09 04 01 00 00 ff 00 00 00"
    )


def test_strings_are_unicode_and_a_missing_one_has_no_number() -> None:
    description = described(product="Schlüssel 🔑", manufacturer="")
    assert description.descriptor(3, 0) == bytes.fromhex("04 03 0904")
    assert description.descriptor(3, 1) == b"\x1a\x03" + "Schlüssel 🔑".encode("utf-16-le")
    assert description.descriptor(3, 2) == b"\x06\x03A\x001\x00"
    assert description.descriptor(3, 3) is None
    device = description.descriptor(1, 0)
    assert device is not None
    assert device[14:17] == bytes((0, 1, 2))


def test_only_a_device_of_high_speed_has_a_qualifier() -> None:
    assert described().descriptor(6, 0) is None
    assert described(speed="high").descriptor(6, 0) == bytes.fromhex("0a 06 0002 00 00 00 40 00 00")


@pytest.mark.parametrize("kind", [0, 4, 5, 15, 0x22, 255])
def test_what_cannot_be_asked_for_alone_is_not_there(kind: int) -> None:
    assert described().descriptor(kind, 0) is None


@pytest.mark.parametrize(("speed", "size"), [("full", 64), ("high", 512)])
def test_packets_are_as_long_as_the_speed_allows(speed: str, size: int) -> None:
    configuration = described(speed=speed, interfaces=(UsbInterface(endpoints=(UsbEndpoint(0x81),)),))
    descriptor = configuration.descriptor(2, 0)
    assert descriptor is not None
    assert int.from_bytes(descriptor[-3:-1], "little") == size


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"identity": "0x0a5e:2110"}, "four hexadecimal digits"),
        ({"identity": "0a5e"}, "four hexadecimal digits"),
        ({"version": "1"}, "write one like 1.00"),
        ({"version": "\u0967.10"}, "write one like 1.00"),
        ({"serial": "9" * 127}, "longer than 126 characters"),
        ({"interfaces": ()}, "it has 0 interfaces"),
        ({"interfaces": (UsbInterface(),) * 33}, "it has 33 interfaces"),
        ({"interfaces": (UsbInterface(256),)}, "does not fit its field"),
        ({"device_class": (0, 0, 256)}, "does not fit its field"),
        ({"interfaces": (UsbInterface(endpoints=(UsbEndpoint(1), UsbEndpoint(1))),)}, "0x01 is there twice"),
        ({"interfaces": (UsbInterface(endpoints=(UsbEndpoint(0x80),)),)}, "0x80 is not one of"),
        ({"interfaces": (UsbInterface(endpoints=(UsbEndpoint(0x181),)),)}, "0x181 is not one of"),
        ({"interfaces": (UsbInterface(endpoints=(UsbEndpoint(1, packet_size=65),)),)}, "of 65 bytes"),
        ({"interfaces": (UsbInterface(endpoints=(UsbEndpoint(1),)),), "speed": "low"}, "at low speed"),
        ({"interfaces": (UsbInterface(endpoints=(UsbEndpoint(1, "interrupt", 8, 0),)),)}, "interval is 0"),
        ({"interfaces": (UsbInterface(class_descriptors=bytes(70_000)),)}, "does not fit its field"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_device_that_cannot_be_is_refused(wanted: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        described(**wanted)


def test_a_model_that_cannot_be_is_refused_when_it_is_made() -> None:
    class Slow(VirtualUsbDevice):
        speed = "low"
        interfaces = (UsbInterface(endpoints=(UsbEndpoint(0x81),)),)

    with pytest.raises(ConfigError, match=r"no USB device '0a5e:2110'.*bulk packets of 0 bytes"):
        Slow("0A5E:2110")
