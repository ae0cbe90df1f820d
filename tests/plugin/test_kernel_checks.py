"""What becomes of tests whose kernels complained. One run with two workers is looked at."""

from dataclasses import dataclass

import pytest

from tests.plugin.project import Project, junit_properties, section_of

ALONE = """
import pytest
from pytest_kvmlab import GuestError
pytestmark = pytest.mark.kvm(image="micro")

BREAK_FILES = "echo planted > $(ls -d /sys/fs/ext4/vd*)/trigger_fs_error"
CRASH = "echo c > /proc/sysrq-trigger"

def test_quiet(guest):
    guest.succeed("dmesg | grep -q EXT4-fs")

def test_provoked(guest):
    assert not guest.kernel_watch.look(ask=True).findings
    guest.run(BREAK_FILES)

@pytest.mark.parametrize("undo", ["reset", "revert"])
def test_undone(guest, undo):
    guest.snapshot("before")
    guest.run(BREAK_FILES)
    guest.reset() if undo == "reset" else guest.revert("before")
    assert not guest.succeed("dmesg | grep trigger_test_error; true")

@pytest.mark.kvm(expect_kernel=["fs-error: planted"])
def test_expected(guest):
    guest.run(BREAK_FILES)

def test_its_own_failure(guest):
    guest.run(BREAK_FILES)
    assert False, "its own"

def test_panic(guest):
    guest.run(CRASH)

@pytest.mark.kvm(expect_kernel=["panic: sysrq"])
def test_expected_panic(guest):
    with pytest.raises(GuestError):
        guest.run(CRASH)

@pytest.mark.xfail(strict=True)
def test_known_to_fail(guest):
    guest.run(BREAK_FILES)

@pytest.fixture
def late(guest):
    yield
    guest.run(CRASH + " &")
    guest.wait_for_console("end Kernel panic")

def test_late(guest, late): ...
"""

SHARED = """
import pytest
# A kernel that says nothing on its console has to be asked.
pytestmark = pytest.mark.kvm(image="micro", login={"channel": "serial"}, cmdline="console=ttyS0 loglevel=1")

def test_tainted(shared_guest):
    shared_guest.succeed("echo 64 > /proc/sys/kernel/tainted")

def test_after(shared_guest):
    shared_guest.succeed("true")

def test_set_back(shared_guest):
    shared_guest.snapshot("before")
    shared_guest.succeed("echo 128 > /proc/sys/kernel/tainted")
    shared_guest.revert("before")

def test_known(shared_guest):
    shared_guest.succeed("echo 16384 > /proc/sys/kernel/tainted")
"""

KNOWN = """
[[kernel]]
kind = "taint"
pattern = "soft lockup"
reason = "planted"
link = "https://bugs.example.org/1"
until = 2999-12-31
"""


@dataclass
class CheckedRun:
    result: pytest.RunResult
    properties: dict[str, dict[str, str]]

    def told(self, test: str) -> str:
        return section_of(str(self.result.stdout), test)


@pytest.fixture(scope="module")
def checked_run(module_project: Project) -> CheckedRun:
    module_project.write("test_alone.py", ALONE)
    module_project.write("test_shared.py", SHARED)
    module_project.write("known.toml", KNOWN)
    arguments = ["-n2", "--dist=loadfile", "-rP", "--kvm-known-issues=known.toml", "--junitxml=junit.xml"]
    result = module_project.pytest("--kvm-lab", *arguments)
    return CheckedRun(result, junit_properties(module_project.folder / "junit.xml"))


def test_only_unexcused_complaints_fail(checked_run: CheckedRun) -> None:
    checked_run.result.assert_outcomes(passed=6, failed=7, errors=1, xfailed=1)


@pytest.mark.parametrize(
    ("test", "complaint"),
    [
        ("test_provoked", "guest: fs-error: EXT4-fs error (device vda): trigger_test_error"),
        ("test_undone[reset]", "guest: fs-error: EXT4-fs error (device vda): trigger_test_error"),
        ("test_undone[revert]", "guest: fs-error: EXT4-fs error (device vda): trigger_test_error"),
        ("test_tainted", "guest: taint: U: a program asked for it"),
        ("test_set_back", "guest: taint: D: the kernel has died before"),
    ],
)
def test_a_complaint_fails_a_test_that_passed(checked_run: CheckedRun, test: str, complaint: str) -> None:
    told = checked_run.told(test)
    assert f"the kernel of guest complained:\n  {complaint}" in told
    assert "kernel_checks.py" not in told


def test_a_failed_test_keeps_its_failure_and_shows_the_complaint(checked_run: CheckedRun) -> None:
    told = checked_run.told("test_its_own_failure")
    assert "AssertionError: its own" in told
    assert "guest: fs-error: EXT4-fs error" in told.partition("kvmlab: kernel")[2]


def test_a_panic_is_shown_with_its_stack(checked_run: CheckedRun) -> None:
    told = checked_run.told("test_panic")
    assert "GuestError: the kernel of guest panicked" in told
    section = told.partition("kvmlab: kernel")[2].partition("kvmlab: guest")[0]
    assert "guest: panic: Kernel panic - not syncing: sysrq triggered crash" in section
    assert "sysrq_handle_crash+0x" in section


def test_what_comes_while_a_test_is_taken_down_is_an_error(checked_run: CheckedRun) -> None:
    assert "guest: panic: Kernel panic" in checked_run.told("test_late")


@pytest.mark.parametrize(("test", "why"), [("test_expected", "expected"), ("test_known", "planted (https")])
def test_an_excused_complaint_is_shown_with_its_excuse(checked_run: CheckedRun, test: str, why: str) -> None:
    assert why in checked_run.told(test).partition("kvmlab: kernel")[2]


def test_junit_properties_have_the_complaints(checked_run: CheckedRun) -> None:
    found = checked_run.properties["test_panic"]["kvmlab.guest.complaint"]
    assert found == "panic: Kernel panic - not syncing: sysrq triggered crash"
    assert "kvmlab.guest.complaint" not in checked_run.properties["test_quiet"]


def test_a_wrong_file_of_known_issues_is_a_usage_error(project: Project) -> None:
    project.write("known.toml", KNOWN.replace("until", "unless"))
    result = project.pytest("--kvm-lab", "--kvm-known-issues=known.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "unknown key" in str(result.stdout)
