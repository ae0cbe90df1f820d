"""The door to libvirt: errors in our words, calls with a limit, events counted."""

import os
import subprocess
import sys
import textwrap
import time

import libvirt
import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.drivers import libvirt as door
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.lab.launch import Launcher


@pytest.fixture(scope="module")
def connection(launcher: Launcher) -> door.Connection:
    return launcher.assembly.host.connection


def test_a_libvirt_that_is_not_there_is_told_with_its_address() -> None:
    with pytest.raises(
        HostError, match=r"libvirt does not answer on qemu\+unix:///system\?socket=/nonexistent"
    ):
        door.Connection("qemu+unix:///system?socket=/nonexistent")


def test_versions_are_dotted(connection: door.Connection) -> None:
    versions = connection.versions()
    assert versions.libvirt.count(".") == versions.qemu.count(".") == 2


def test_a_domain_that_libvirt_refuses_is_told_in_its_words(connection: door.Connection) -> None:
    with pytest.raises(HostError, match="libvirt cannot start the guest: missing name information"):
        connection.create("<domain/>", autodestroy=True)


def test_a_call_that_takes_too_long_is_given_up() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0.1 s"):
        door._answer(lambda: time.sleep(2), 0.1)
    assert time.monotonic() - started < 1


def test_a_call_passes_its_answer_and_its_error_on() -> None:
    assert door._answer(lambda: 42) == 42
    with pytest.raises(libvirt.libvirtError):
        door._answer(lambda: libvirt.open("nothing:///"))


def test_the_resets_of_one_reboot_are_one() -> None:
    reboots = door._Reboots()
    for _ in range(3):
        reboots.note("a")
    time.sleep(door._ONE_RESET_SECONDS + 0.05)
    reboots.note("a")
    assert (reboots.of("a"), reboots.of("b")) == (2, 0)


@pytest.mark.kvm(image="micro")
def test_a_domain_that_is_gone_is_off_and_ended(guest: Guest) -> None:
    domain = guest.machine.domain
    assert domain.state() == "running"
    assert f"<name>{guest.machine.plan.name}</name>" in domain.xml()
    domain.destroy()
    assert domain.state() == "off"
    domain.destroy()
    with pytest.raises(HostError, match=r"the monitor of .* does not answer 'info status'"):
        domain.monitor("info status")


def test_a_forked_process_is_refused(connection: door.Connection) -> None:
    """In an interpreter of its own: forking this one, which has threads, is what the refusal is about."""
    program = f"""
        import os
        from pytest_kvmlab.drivers.libvirt import Connection
        from pytest_kvmlab.errors import HostError
        Connection({connection.uri!r}).close()
        if os.fork():
            os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
        try:
            Connection({connection.uri!r})
        except HostError as error:
            print(error)
            os._exit(0 if "was forked" in str(error) else 1)
        os._exit(2)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        timeout=60,
        check=False,
        capture_output=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert ran.returncode == 0, ran
