"""What the report of a failed test says about its guest. One run with two workers is looked at."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.plugin.project import Project, junit_properties, section_of

ALONE = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

def test_wrong_answer(guest):
    guest.succeed("echo the first")
    guest.succeed("echo on the screen > /dev/console; echo the answer; exit 3")

def test_good(guest):
    guest.succeed("true")

@pytest.mark.kvm(cmdline="console=ttyS0 rdinit=/missing")
def test_no_boot(guest): ...

@pytest.mark.kvm(memory="900GiB")
def test_no_creation(guest): ...

def test_without_a_guest():
    assert False, "something else"
"""

SHARED = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

@pytest.fixture
def app(shared_guest):
    shared_guest.succeed("echo starting the app; exit 4")

def test_app(app): ...

def test_good_too(shared_guest):
    shared_guest.succeed("true")

def test_another_guest_breaks(shared_guest, make_guest):
    other = make_guest()
    other.domain.destroy()
    other.run("true")

def test_still_good(shared_guest):
    shared_guest.succeed("true")

def test_power_failure(shared_guest):
    shared_guest.domain.destroy()
    shared_guest.run("true")

def test_later(shared_guest):
    pytest.fail("the guest was given to a later test")

def test_without_the_shared_guest(): ...
"""


@dataclass
class FailedRun:
    result: pytest.RunResult
    properties: dict[str, dict[str, str]]
    artifacts: Path

    def told(self, test: str) -> str:
        return section_of(str(self.result.stdout), test)

    def files(self, test: str) -> dict[str, Path]:
        """The files that were kept of the guest of a test, or of a module."""
        return {path.name: path for path in self.artifacts.glob(f"*{test}/*/*")}

    def events(self, test: str) -> list[dict[str, str]]:
        lines = self.files(test)["journal.jsonl"].read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def failed_run(module_project: Project) -> FailedRun:
    module_project.write("test_alone.py", ALONE)
    module_project.write("test_shared.py", SHARED)
    arguments = ["-n2", "--dist=loadfile", "--junitxml=junit.xml", "--kvm-artifacts=artifacts"]
    # More than there is, so that it is QEMU that refuses a guest which asks for too much.
    result = module_project.pytest("--kvm-lab", "--kvm-reset=boot", "--kvm-memory=2TiB", *arguments)
    folder = module_project.folder
    return FailedRun(result, junit_properties(folder / "junit.xml"), folder / "artifacts")


def test_each_failure_is_counted_as_what_it_is(failed_run: FailedRun) -> None:
    failed_run.result.assert_outcomes(passed=4, failed=4, errors=4)


def test_the_traceback_ends_at_the_line_of_the_test(failed_run: FailedRun) -> None:
    told = failed_run.told("test_wrong_answer")
    assert '>       guest.succeed("echo on the screen' in told
    assert "pytest_kvmlab/" not in told


def test_the_message_of_a_failed_command_has_its_output(failed_run: FailedRun) -> None:
    told = failed_run.told("test_wrong_answer")
    assert "exit status 3" in told
    assert "the answer" in told


def test_the_section_of_a_guest_has_phases_commands_and_console(failed_run: FailedRun) -> None:
    _, _, section = failed_run.told("test_wrong_answer").partition("kvmlab: guest guest")
    lines = section.splitlines()
    phases, commands = "phases: create * s, ssh * s, ready * s", ["last commands:", "  'echo the first' * s"]
    pytest.LineMatcher(lines).fnmatch_lines([phases, *commands, "console:", "*on the screen"])


def test_the_files_that_the_section_names_exist(failed_run: FailedRun) -> None:
    lines = failed_run.told("test_wrong_answer").splitlines()
    named = [line.partition(": ")[2] for line in lines if line.startswith(("screenshot: ", "files: "))]
    assert len(named) == 2
    assert all(Path(name).exists() for name in named)


def test_console_xml_events_and_picture_are_kept(failed_run: FailedRun) -> None:
    files = failed_run.files("test_wrong_answer")
    assert "on the screen" in files["console.log"].read_text()
    assert "<domain" in files["domain.xml"].read_text()
    assert files["screenshot.png"].read_bytes().startswith(b"\x89PNG")


def test_the_journal_of_a_guest_has_its_own_events_alone(failed_run: FailedRun) -> None:
    events = failed_run.events("test_good")
    names = [event["name"] for event in events if event["kind"] in ("phase", "command")]
    assert names == ["create", "ssh", "ready", "true"]


def test_a_guest_that_never_got_ready_shows_the_same(failed_run: FailedRun) -> None:
    told = failed_run.told("test_no_boot")
    assert "GuestError: the kernel of guest panicked" in told
    assert "ssh" in told
    assert "(failed)" in told
    assert "Kernel panic" in failed_run.files("test_no_boot")["console.log"].read_text()


def test_a_guest_that_cannot_be_created_tells_the_reason_of_qemu(failed_run: FailedRun) -> None:
    told = failed_run.told("test_no_creation")
    assert "GuestError: guest cannot be created" in told
    assert "Cannot allocate memory" in told


def test_a_fixture_that_fails_shows_its_guest(failed_run: FailedRun) -> None:
    told = failed_run.told("test_app")
    assert "'echo starting the app; exit 4'" in told.partition("last commands:")[2]


@pytest.mark.parametrize("test", ["test_no_boot", "test_no_creation", "test_power_failure", "test_later"])
def test_a_broken_guest_is_marked_as_infrastructure(failed_run: FailedRun, test: str) -> None:
    assert "this is no verdict on what is tested" in failed_run.told(test)
    assert failed_run.properties[test]["kvmlab.failure"] == "infrastructure"


@pytest.mark.parametrize("test", ["test_wrong_answer", "test_app", "test_without_a_guest"])
def test_an_ordinary_failure_is_not(failed_run: FailedRun, test: str) -> None:
    assert "no verdict" not in failed_run.told(test)
    assert "kvmlab.failure" not in failed_run.properties[test]


def test_the_journal_says_in_which_test_the_guest_broke(failed_run: FailedRun) -> None:
    failures = [event for event in failed_run.events("test_shared.py") if event["kind"] == "failure"]
    assert [event["name"] for event in failures] == ["test_shared.py::test_power_failure"]
    assert failures[0]["outcome"].startswith("infrastructure: ")


def test_a_guest_is_not_to_blame_for_another_that_broke(failed_run: FailedRun) -> None:
    assert failed_run.properties["test_another_guest_breaks"]["kvmlab.failure"] == "infrastructure"
    assert "kvmlab.failure" not in failed_run.properties["test_still_good"]
    events = failed_run.events("test_another_guest_breaks")
    assert [event["name"] for event in events if event["kind"] == "failure"] == [
        "test_shared.py::test_another_guest_breaks"
    ]


def test_a_later_test_is_told_at_once_that_the_shared_guest_broke(failed_run: FailedRun) -> None:
    told = failed_run.told("test_later")
    assert "GuestError: guest broke in test_shared.py::test_power_failure: guest " in told
    assert "last commands" not in told


@pytest.mark.parametrize("test", ["test_good", "test_wrong_answer", "test_good_too", "test_app"])
def test_junit_properties_tell_what_was_tested(failed_run: FailedRun, test: str) -> None:
    found = failed_run.properties[test]
    assert found["kvmlab.guest.image"] == "micro"
    assert len(found["kvmlab.guest.image_sha256"]) == 64
    assert found["kvmlab.guest.kernel"][0].isdigit()
    assert found["kvmlab.accelerator"] in ("kvm", "tcg")
    assert float(found["kvmlab.guest.ssh_seconds"]) > 0


def test_junit_properties_tell_how_far_a_guest_came(failed_run: FailedRun) -> None:
    found = failed_run.properties["test_no_boot"]
    assert "kvmlab.guest.ssh_seconds" in found
    assert "kvmlab.guest.ready_seconds" not in found


@pytest.mark.parametrize("test", ["test_without_a_guest", "test_without_the_shared_guest"])
def test_a_test_without_a_guest_has_no_properties(failed_run: FailedRun, test: str) -> None:
    assert failed_run.properties[test] == {}
