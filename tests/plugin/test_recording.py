"""What a run writes down about itself. One run with two workers is looked at."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_kvmlab.spec.run_record import GuestRecord, RunRecord, TestRecord, read_runs
from tests.plugin.project import Project

TESTS = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

def test_good(guest):
    guest.succeed("true")

@pytest.mark.kvm(expect_kernel=["fs-error"])
def test_complaint(guest):
    for _ in range(2):
        guest.succeed("sleep 0.2; echo x > $(ls -d /sys/fs/ext4/vd*)/trigger_fs_error")

def test_bad(guest):
    assert guest is None, "\\N{SNOWMAN} <b>\\x1b[2J"

@pytest.mark.kvm(cmdline="console=ttyS0 rdinit=/missing")
def test_no_boot(guest): ...

@pytest.mark.xfail
def test_xfailed():
    assert False

@pytest.mark.skip
def test_skipped(): ...

@pytest.fixture
def broken():
    yield
    raise OSError

def test_teardown(broken): ...
"""
SHARED = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

def test_first(shared_guest):
    shared_guest.succeed("true")

def test_second(shared_guest):
    shared_guest.reboot()
"""


@dataclass
class RecordedRun:
    record: RunRecord
    artifacts: Path
    told: list[str]

    def test(self, name: str) -> TestRecord:
        return next(test for test in self.record.tests if test.id.endswith(f"::{name}"))

    def guest(self, name: str) -> GuestRecord:
        (guest,) = self.test(name).guests
        return guest


@pytest.fixture(scope="module")
def run(module_project: Project) -> RecordedRun:
    module_project.write("test_alone.py", TESTS)
    module_project.write("test_shared.py", SHARED)
    result = module_project.pytest("--kvm-lab", "-n2", "--dist=loadfile", "--kvm-artifacts=artifacts")
    artifacts = module_project.folder / "artifacts"
    return RecordedRun(read_runs(artifacts)[0], artifacts, result.outlines)


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("test_good", "passed"),
        ("test_bad", "failed"),
        ("test_no_boot", "error"),
        ("test_xfailed", "xfailed"),
        ("test_skipped", "skipped"),
        ("test_teardown", "error"),
        ("test_second", "passed"),
    ],
)
def test_each_test_of_each_worker_has_its_outcome(run: RecordedRun, name: str, outcome: str) -> None:
    assert run.test(name).outcome == outcome


def test_the_host_is_described(run: RecordedRun) -> None:
    host = run.record.host
    assert host
    assert all([host.kernel, host.architecture, host.processors, host.qemu, host.libvirt, host.kind])
    assert host.accelerator in ("kvm", "tcg")


def test_the_ways_of_all_workers_to_clean_guests_are_counted(run: RecordedRun) -> None:
    assert run.record.resets["clone"] >= 3
    assert [
        f"{times} x {way}" for way, times in run.record.resets.items() if f"{times} x {way}" not in run.told
    ] == []


def test_a_guest_is_described(run: RecordedRun) -> None:
    guest = run.guest("test_good")
    assert (guest.name, guest.image, guest.tainted, guest.findings) == ("guest", "micro", "", ())
    assert len(guest.image_identity) == 64
    assert guest.kernel[0].isdigit()
    assert [card.network for card in guest.networks] == ["user"]
    assert (run.artifacts / guest.folder / "console.log").exists()


def test_the_system_of_the_first_guest_of_a_kind_is_described(run: RecordedRun) -> None:
    system = run.record.systems[run.guest("test_good").system]
    assert "virtio_net" in system.modules
    assert "virtio-pci" in {device.driver for device in system.devices}
    assert run.guest("test_bad").system == run.guest("test_good").system


def test_complaints_are_counted_with_their_excuse(run: RecordedRun) -> None:
    (finding,) = run.guest("test_complaint").findings
    assert (finding.kind, finding.count, finding.excused, finding.excuse) == ("fs-error", 2, True, "expected")


def test_a_guest_that_never_came_up_is_there_with_its_panic(run: RecordedRun) -> None:
    assert run.test("test_no_boot").infrastructure
    guest = run.guest("test_no_boot")
    assert [phase.name for phase in guest.phases if phase.outcome] == ["ssh"]
    assert guest.findings[0].kind == "panic"


def test_a_shared_guest_has_the_phases_of_each_test(run: RecordedRun) -> None:
    assert run.guest("test_first").phases
    assert "reboot" in [phase.name for phase in run.guest("test_second").phases]
    assert "reboot" not in [phase.name for phase in run.guest("test_first").phases]


def test_what_failed_is_told(run: RecordedRun) -> None:
    assert run.test("test_bad").message.startswith("AssertionError: \N{SNOWMAN} <b>")
    assert run.test("test_good").message == ""


def test_no_record_is_written_where_tests_are_only_collected(project: Project) -> None:
    project.write("test_it.py", TESTS)
    project.pytest("--kvm-lab", "--collect-only")
    assert not (project.folder / "kvmlab-artifacts").exists()


def test_a_folder_that_cannot_be_written_to_fails_no_test(project: Project) -> None:
    project.write("test_it.py", "def test_it(): ...")
    project.write("taken", "")
    result = project.pytest("--kvm-lab", "--kvm-artifacts=taken")
    assert result.ret == pytest.ExitCode.OK
    assert "taken/run.json could not be written" in str(result.stdout)
