"""`kvmlab usb list`, and what `kvmlab doctor` says of USB."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pytest_kvmlab.checks import usb_finding
from pytest_kvmlab.cli import app
from pytest_kvmlab.cli.usb import devices_as_documents
from pytest_kvmlab.errors import UsbError
from tests.unit.fake_usb import FakeHost
from tests.unit.test_usb_devices import program_with


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_each_device_has_a_state_and_a_line_to_write(host: FakeHost) -> None:
    host.plug("1-1", "1d6b:0002", kind="09")
    host.plug("1-2", "1209:0001", serial="X")
    host.lease(host.plug("1-3"), "a test")
    held = host.plug("1-4")
    with program_with(host.usb.bus.node(held)) as process:
        found = {str(each["port"]): each for each in devices_as_documents(host.usb)}
    assert {port: each["state"] for port, each in found.items()} == {
        "1-1": "refused",
        "1-2": "free",
        "1-3": "leased",
        "1-4": "held",
    }
    assert {port: each["line"] for port, each in found.items()} == {
        "1-1": None,
        "1-2": 'usb = ["1209:0001"]',
        "1-3": 'usb = ["0a5e:2110@1-3"]',
        "1-4": 'usb = ["0a5e:2110@1-4"]',
    }
    assert str(found["1-3"]["why"]).startswith("a test since ")
    assert str(found["1-4"]["why"]).endswith(f"(process {process})")


def test_what_only_root_could_see_is_told(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.plug("1-1")
    host.add("1-1", "ttyUSB0/tty/ttyUSB0", uevent="MAJOR=188\nMINOR=0\nDEVNAME=ttyUSB0")
    host.plug("1-2")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    told = {(each["state"], each["why"]) for each in devices_as_documents(host.usb)}
    assert told == {("free", "unless another user's program has ttyUSB0 open"), ("free", "")}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert {each["why"] for each in devices_as_documents(host.usb)} == {""}


def test_the_list_is_a_table_for_people_and_json_for_scripts(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.plug("1-2", "1209:0001", serial="X")
    monkeypatch.setattr("pytest_kvmlab.cli.usb.HostUsb", lambda: host.usb)
    shown = CliRunner().invoke(app, ["usb", "list"]).stdout
    assert '1209:0001  Dongle #X  free   usb = ["1209:0001"]' in shown
    assert '"line": "usb = [\\"1209:0001\\"]"' in CliRunner().invoke(app, ["usb", "list", "--json"]).stdout


def test_a_machine_without_usb_is_an_error_for_people_and_empty_for_scripts(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.usb.bus.sysfs.rmdir()
    monkeypatch.setattr("pytest_kvmlab.cli.usb.HostUsb", lambda: host.usb)
    with pytest.raises(UsbError, match="this machine has no USB"):
        CliRunner().invoke(app, ["usb", "list"], catch_exceptions=False)
    assert CliRunner().invoke(app, ["usb", "list", "--json"]).stdout == "[]\n"


def test_doctor_prints_the_rule_for_a_node_that_may_not_be_used(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.plug("1-1", "1d6b:0002", kind="09")
    device = host.plug("1-2")
    assert usb_finding(host.usb.bus).seen == "0a5e:2110 in port 1-2"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do everything
    finding = usb_finding(host.usb.bus)
    assert finding.seen == f"this user may not use {host.usb.bus.node(device)} (0a5e:2110)"
    rule = 'SUBSYSTEM=="usb", ATTR{idVendor}=="0a5e", ATTR{idProduct}=="2110", MODE="0660", GROUP="kvm"'
    assert (
        f"/etc/udev/rules.d/70-kvmlab.rules, for the dongle that guests shall have: {rule};" in finding.remedy
    )


def test_doctor_says_that_there_is_no_usb(host: FakeHost) -> None:
    assert usb_finding(host.usb.bus).ok
    host.usb.bus.sysfs.rmdir()
    assert usb_finding(host.usb.bus).seen.startswith("this machine has no USB")
