"""The key `usb`: what may be written, and what is said of everything else."""

import pytest

from pytest_kvmlab.drivers.usb_models import MODELS
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.conflicts import find_conflicts
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.resolved import resolve_guest
from pytest_kvmlab.spec.usb import MOST_DONGLES, UsbKeys
from pytest_kvmlab.spec.validation import validate

ID = "0a5e:2110"


def dongles(*written: object) -> tuple[UsbKeys, ...]:
    keys = validate(GuestKeys, {"image": "micro", "usb": list(written)}, source="here")
    return resolve_guest(keys, source="here").usb


def refusal(*written: object) -> str:
    with pytest.raises(ConfigError) as caught:
        dongles(*written)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (ID, {"id": ID}),
        ("0A5E:2110", {"id": ID}),
        (f"{ID}@1-1.4", {"id": ID, "port": "1-1.4"}),
        (f"{ID}#A1", {"id": ID, "serial": "A1"}),
        (f"{ID}@10-1.2.3.4.5.6#A @1-1#2", {"id": ID, "port": "10-1.2.3.4.5.6", "serial": "A @1-1#2"}),
    ],
)
def test_a_dongle_is_written_as_a_text_or_as_a_table(written: str, meant: dict[str, str]) -> None:
    assert dongles(written) == dongles(meant)
    assert dongles(written)[0].text == written.lower().replace("#a", "#A")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "0x0a5e:2110",
            f"usb[0]: did you mean '{ID}'?: write VENDOR:PRODUCT as lsusb does, four hexadecimal",
        ),
        ("0x0a5e:0x2110", f"did you mean '{ID}'?"),
        ("a5e:2110", f"did you mean '{ID}'?"),
        (" 0a5e:2110", f"did you mean '{ID}'?"),
        ("0a5e", "usb[0]: has a vendor, but no product"),
        ("zzzz:0001", "usb[0]: is not two hexadecimal numbers"),
        ("0a5e:2110:1", "is not two hexadecimal numbers"),
        ("Bus 001 Device 004: ID 0a5e:2110", "is not two hexadecimal numbers"),
        ("0a5e:21100", "has a number of more than four digits"),
        ("0000:2110", "no vendor has the number 0000"),
        ("0a5e:2110@4", "is not a USB port such as '1-1.4': `kvmlab usb list` shows them"),
        ("0a5e:2110@usb1", "is not a USB port"),
        ("0a5e:2110@1-1.2.3.4.5.6.7", "is not a USB port"),
        ("0a5e:2110@../../x", "is not a USB port"),
        ("0a5e:2110#", "should be a text that is not empty"),
        ("0a5e:2110#a\nb", "has a line break"),
        (f"0a5e:2110#{'x' * 127}", "is longer than a serial number can be: 126 characters"),
        (2110, "usb[0]: should be a table"),
        ({"virtual": "licence"}, "usb[0].id: missing"),
        (
            {"virtual": "license", "id": ID},
            "usb[0].virtual: should be 'licence'; found 'license' (did you mean",
        ),
        ({"virtual": "licence", "id": ID, "port": "1-1"}, "is virtual, so that it has no port"),
        ({"virtual": "licence", "id": "a5e:2110"}, "usb[0].id: did you mean"),
        ({"virtual": "licence", "id": ID, "name": "A b"}, "usb[0].name: a virtual dongle's name is a lower"),
        ({"id": ID, "name": "mine"}, "only a virtual one has a name or may be unplugged"),
        ({"id": ID, "plugged": False}, "only a virtual one has a name or may be unplugged"),
        ({"id": ID, "vendor": "0a5e"}, "usb[0].vendor: unknown key"),
    ],
)
def test_what_is_no_dongle_is_refused_with_what_would_be_one(written: object, said: str) -> None:
    assert said in refusal(written)


def test_a_guest_has_each_dongle_once_and_no_more_than_there_are_ports() -> None:
    assert "has 0a5e:2110 twice: say which is which" in refusal(ID, ID)
    assert "has 1-1 twice" in refusal(f"{ID}@1-1", "1209:0001@1-1")
    virtual = {"virtual": "licence", "id": ID}
    assert "has licence twice" in refusal(virtual, {**virtual, "serial": "A1"})
    assert len(dongles(virtual, {**virtual, "name": "second"}, ID, f"{ID}@1-1", f"{ID}#A1")) == 5
    ports = [f"{ID}@1-{number}" for number in range(1, MOST_DONGLES + 2)]
    assert len(dongles(*ports[:-1])) == MOST_DONGLES
    assert "at most 15 items" in refusal(*ports)


def test_a_list_is_a_list() -> None:
    with pytest.raises(ConfigError, match=r"usb: should be a list; found '0a5e:2110'"):
        validate(GuestKeys, {"usb": ID}, source="here")


def test_a_microvm_has_no_usb() -> None:
    keys = GuestKeys.model_validate({"image": "micro", "machine": "microvm", "usb": [ID]})
    with pytest.raises(ConfigError, match="machine 'microvm' has no USB controller"):
        resolve_guest(keys, source="here")


def conflicts(**guests: list[object]) -> list[str]:
    keys = {name: GuestKeys.model_validate({"usb": usb}) for name, usb in guests.items()}
    return [each.said for each in find_conflicts(keys, {}, {})]


@pytest.mark.parametrize(
    ("one", "other", "dongle"),
    [(ID, ID, ID), (f"{ID}#A1", f"{ID}#A1", f"{ID}#A1"), (f"{ID}@1-1", "1209:0001@1-1", "1-1")],
)
def test_two_guests_of_a_lab_cannot_have_one_dongle(one: str, other: str, dongle: str) -> None:
    found = conflicts(a=["1209:0002", one], b=[other])
    assert found == [f"guest.a.usb[1] and guest.b.usb[0] have one dongle, {dongle}"]


def test_guests_of_a_lab_may_have_equal_dongles_that_are_told_apart_and_virtual_ones() -> None:
    virtual = {"virtual": "licence", "id": ID}
    assert conflicts(a=[virtual, f"{ID}@1-1"], b=[virtual, f"{ID}@1-2"], c=[f"{ID}#A1"], d=[ID]) == []


def test_a_lab_file_may_name_every_model_there_is() -> None:
    for model in MODELS:
        assert dongles({"virtual": model, "id": ID})[0].called == model
