"""Guests with the real KVM code of a kernel, and real USB devices of a host, on machines that have neither.

QEMU emulates a processor with SVM, and the devices; the kernel on it, its module `kvm_amd`, libvirt, and
QEMU's way through KVM and `usbfs` are the real ones. What is tested there is in `inner`, and told here.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.plugin.session import LabSession
from tests.proving.ground import (
    HOST,
    INNER,
    ROOT,
    Outcomes,
    install_store,
    run_suite,
)

USER = "tester"

pytestmark = [
    pytest.mark.kvm(**HOST),
    pytest.mark.timeout(2400),
]


def inner_tests(folder: Path) -> list[str]:
    """The tests of a folder, as `file::name`."""
    return [
        f"{file.stem}::{node.name}"
        for file in sorted(folder.glob("test_*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


BY_ROOT, BY_USER = inner_tests(ROOT / INNER), inner_tests(ROOT / INNER / "user")


@pytest.fixture(scope="module")
def by_root(ground: Guest, session: LabSession) -> Outcomes:
    install_store(ground, "root")
    return run_suite(ground, session, "root", f"{INNER} --ignore={INNER}/user", "root")


@pytest.fixture(scope="module")
def by_user(ground: Guest, session: LabSession, by_root: Outcomes) -> Outcomes:  # noqa: ARG001 -- one at a time
    """As a user to whom udev gives the dongle, by the rule that `kvmlab doctor` prints."""
    usb = doctor(ground, USER)["usb"]
    assert not usb["ok"]
    (rule,) = [each for each in re.findall('SUBSYSTEM=="usb".*?GROUP="kvm"', usb["remedy"]) if "0a5e" in each]
    ground.ssh.run("cat >/etc/udev/rules.d/70-kvmlab.rules", stdin=f"{rule}\n")
    ground.succeed("udevadm control --reload && udevadm trigger --subsystem-match=usb && udevadm settle")
    install_store(ground, USER)
    return run_suite(ground, session, "user", f"{INNER}/user", USER)


def doctor(guest: Guest, user: str = "root") -> dict[str, dict[str, Any]]:
    found = guest.run(f"runuser -u {user} -- kvmlab doctor --json").stdout
    return {check["check"]: check for check in json.loads(found)}


def test_a_host_of_guests_has_what_guests_need(ground: Guest) -> None:
    found = doctor(ground)
    assert [name for name, check in found.items() if not check["ok"] and not check["optional"]] == []
    assert found["kvm"]["ok"]
    assert found["usb"]["ok"]


def test_the_devices_of_the_host_are_listed_with_what_to_write_for_them(ground: Guest) -> None:
    listed = json.loads(ground.succeed("kvmlab usb list --json"))
    assert {(each["id"], each["state"], each["line"]) for each in listed} == {
        ("1d6b:0002", "refused", None),
        ("1d6b:0003", "refused", None),
        *(("0a5e:2110", "free", f'usb = ["0a5e:2110@1-{port}"]') for port in (1, 2, 3)),
        ("0403:6001", "free", 'usb = ["0403:6001"]'),
        ("46f4:0001", "free", 'usb = ["46f4:0001"]'),
    }


@pytest.mark.parametrize("test", BY_ROOT)
def test_by_root(by_root: Outcomes, test: str) -> None:
    assert by_root.said[test] == ""


@pytest.mark.parametrize("test", BY_USER)
def test_by_a_user(by_user: Outcomes, test: str) -> None:
    assert by_user.said[test] == ""


def test_the_artifacts_of_the_inner_tests_come_home(by_root: Outcomes) -> None:
    (console,) = by_root.artifacts.glob("*bridge_of_the_host*/server-*/console.log")
    assert "micro: ready" in console.read_text(errors="replace")


def test_a_host_whose_module_is_not_loaded_is_told_what_to_do(ground: Guest, by_user: Outcomes) -> None:  # noqa: ARG001 -- after all guests
    ground.succeed("modprobe --remove kvm_amd")
    kvm = doctor(ground)["kvm"]
    ground.succeed("modprobe kvm_amd")
    assert (kvm["ok"], kvm["optional"], kvm["seen"]) == (False, True, "there is no /dev/kvm")
    assert "modprobe kvm_intel or kvm_amd" in kvm["remedy"]
    assert doctor(ground)["kvm"]["ok"]
