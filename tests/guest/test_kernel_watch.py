"""What a real kernel says, on its console and in its log."""

import pytest

from pytest_kvmlab import Guest, GuestError
from pytest_kvmlab.lab.kernel_watch import Inspection

pytestmark = pytest.mark.kvm(image="micro")
QUIET = "console=ttyS0 loglevel=1"
FS_ERROR = "echo {} > $(ls -d /sys/fs/ext4/vd*)/trigger_fs_error"


def kinds(inspection: Inspection) -> list[str]:
    return [finding.kind for finding in inspection.findings]


def test_a_kernel_of_ours_shows_its_warnings_on_the_console(guest: Guest) -> None:
    assert guest.kernel_watch.hears_all
    assert guest.succeed("cut -f1 /proc/sys/kernel/printk") == "5\n"


@pytest.mark.kvm(expect_kernel=["fs-error"])
def test_what_is_on_the_console_is_heard_once(guest: Guest) -> None:
    assert kinds(guest.kernel_watch.look(ask=True)) == []
    guest.succeed(FS_ERROR.format("first"))
    (found,) = guest.kernel_watch.look(ask=False).findings
    assert found.title.endswith("first")
    assert found.time
    assert kinds(guest.kernel_watch.look(ask=True)) == []


@pytest.mark.kvm(cmdline=QUIET, expect_kernel=["fs-error", "taint"])
def test_a_quiet_kernel_is_asked_for_its_log_and_taint(guest: Guest) -> None:
    assert not guest.kernel_watch.hears_all
    guest.succeed(FS_ERROR.format("unheard") + "; echo 64 > /proc/sys/kernel/tainted")
    assert kinds(guest.kernel_watch.look(ask=False)) == []
    inspection = guest.kernel_watch.look(ask=True)
    assert kinds(inspection) == ["fs-error", "taint"]
    assert inspection.answer
    assert inspection.answer.tainted == 64
    assert kinds(guest.kernel_watch.look(ask=True)) == []


@pytest.mark.kvm(expect_kernel=["hung-task"])
def test_a_process_that_hangs_in_the_kernel_is_found_with_its_stack(guest: Guest) -> None:
    guest.succeed("cd /proc/sys/kernel; echo 1 | tee hung_task_timeout_secs hung_task_check_interval_secs")
    guest.succeed("fsfreeze --freeze /data; touch /data/x >/dev/null 2>&1 &")
    guest.wait_for_console("blocked for more than")
    guest.succeed("fsfreeze --unfreeze /data")
    found = guest.kernel_watch.look(ask=True).findings
    assert {finding.kind for finding in found} == {"hung-task"}
    assert any("touch" in line for line in (found[0].title, *found[0].stack))


@pytest.mark.kvm(cmdline=QUIET, login={"channel": "serial"}, expect_kernel=["fs-error"])
def test_the_log_comes_over_the_serial_line_too(guest: Guest) -> None:
    guest.succeed(FS_ERROR.format("serial"))
    assert kinds(guest.kernel_watch.look(ask=True)) == ["fs-error"]
    assert kinds(guest.kernel_watch.look(ask=True)) == []


def test_a_guest_that_is_off_is_not_asked(guest: Guest) -> None:
    guest.crash()
    assert guest.kernel_watch.look(ask=True) == Inspection((), None)


@pytest.mark.kvm(expect_kernel=["panic"])
def test_nobody_waits_for_the_answer_of_a_kernel_that_panicked(guest: Guest) -> None:
    guest.serial.sendline("echo c > /proc/sysrq-trigger")
    with pytest.raises(GuestError, match="panicked"):
        guest.wait_for_console("a line that never comes")
    inspection = guest.kernel_watch.look(ask=True)
    assert kinds(inspection) == ["panic"]
    assert inspection.answer is None
