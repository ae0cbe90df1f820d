"""USB devices as libvirt gets them; `REGENERATE_GOLDEN=1` in the environment writes the golden files anew."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pytest_kvmlab.plan.usb import PassedDevice, RedirectedDevice, passed_device, redirected_device, usb_xml
from tests.unit.golden_files import GOLDEN, golden, valid

CASES: dict[str, PassedDevice | RedirectedDevice] = {
    "usb-passed": passed_device(0, 1, 4),
    "usb-redirected": redirected_device(3, Path("/run/web")),
}


def parsed(xml: str) -> ET.Element:
    return ET.fromstring(xml)  # noqa: S314  our own


@pytest.mark.parametrize("name", CASES)
def test_a_device_is_printed_as_the_golden_file_says_and_libvirt_takes_it(name: str) -> None:
    printed = usb_xml(CASES[name])
    assert printed == golden(GOLDEN / f"{name}.xml", printed)
    domain = parsed((GOLDEN / "q35.xml").read_text())
    devices = domain.find("devices")
    assert devices is not None
    devices.append(parsed(printed))
    assert valid(ET.tostring(domain, encoding="unicode"), "domain.rng")


def test_hostile_text_stays_text() -> None:
    odd = Path("/run/'\"><source path='/x'/>/usb0.sock")
    printed = parsed(usb_xml(RedirectedDevice("ua-usb0", odd)))
    assert [source.get("path") for source in printed.iter("source")] == [str(odd)]


def test_each_device_has_a_name_of_its_own() -> None:
    assert passed_device(0, 1, 4) == PassedDevice("ua-usb0", 1, 4)
    assert redirected_device(1, Path("/run/web")).alias == "ua-usb1"
