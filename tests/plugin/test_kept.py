"""`--kvm-keep`: which guests stay, and that the commands which the summary prints do what they say."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pexpect
import pytest

from tests.plugin.project import Project

TESTS = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

@pytest.mark.parametrize("name", ["one", "two"])
def test_bad(guest, name):
    guest.succeed(f"echo {name} > /tmp/name")
    assert False

@pytest.mark.kvm(cmdline="console=ttyS0 rdinit=/missing")
def test_no_boot(guest): ...

def test_good(guest): ...
"""


@dataclass
class KeptRun:
    project: Project
    result: pytest.RunResult

    def commands(self, verb: str) -> list[str]:
        lines = [line.strip() for line in self.result.outlines]
        return [line for line in lines if f"kvmlab lab {verb} " in line]

    def parameter_above(self, command: str) -> str:
        """The parameter of the test whose guest a command leads to: it stands in the line above."""
        lines = self.result.outlines
        return lines[lines.index(f"  {command}") - 1].partition("[")[2].removesuffix("]")


@pytest.fixture(scope="module")
def kept_run(module_project: Project) -> Iterator[KeptRun]:
    module_project.write("test_it.py", TESTS)
    kept = KeptRun(module_project, module_project.pytest("--kvm-lab", "-n2", "--kvm-keep=failed"))
    yield kept
    reap = ["kvmlab", "reap", "--kept"]  # for the case that the last test of this module did not
    subprocess.run(reap, env=module_project.full_environment(), check=True, timeout=60)


def test_the_guests_of_failed_tests_stay_and_no_others(kept_run: KeptRun) -> None:
    kept_run.result.assert_outcomes(failed=2, errors=1, passed=1)
    kept_run.result.stdout.fnmatch_lines(["*kvmlab: kept guests*"])
    assert len([line for line in kept_run.project.processes() if "qemu-system" in line]) == 3


def test_a_guest_that_let_nobody_in_is_reached_by_its_console_only(kept_run: KeptRun) -> None:
    assert len(kept_run.commands("shell")) == 2
    assert len(kept_run.commands("console")) == 3


def test_the_summary_says_which_test_each_guest_is_of(kept_run: KeptRun) -> None:
    for test in ("test_bad[[]one]", "test_bad[[]two]", "test_no_boot"):
        kept_run.result.stdout.fnmatch_lines([f"guest-*, image micro, of test_it.py::{test}"])


@pytest.mark.parametrize("number", [0, 1])
def test_the_printed_shell_command_leads_into_the_guest(kept_run: KeptRun, number: int) -> None:
    command = kept_run.commands("shell")[number]
    with pexpect.spawn("sh", ["-c", command], timeout=60, encoding="utf-8") as shell:
        shell.sendline("echo it is $(cat /tmp/name)")
        shell.expect(f"it is {kept_run.parameter_above(command)}\r")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)


def test_the_printed_console_command_shows_the_serial_line(kept_run: KeptRun) -> None:
    title = next(line for line in kept_run.result.outlines if line.endswith("test_bad[one]"))
    command = next(line for line in kept_run.commands("console") if line.endswith(title.partition(",")[0]))
    with pexpect.spawn("sh", ["-c", command], timeout=60, encoding="utf-8") as line:
        line.sendline("uname -s")
        line.expect("Linux")


def test_the_printed_command_takes_them_away(module_project: Project, kept_run: KeptRun) -> None:
    (command,) = kept_run.commands("down")
    subprocess.run(command, shell=True, check=True, timeout=60)  # noqa: S602 # as a person would
    assert module_project.run_folders() == []
    assert module_project.processes() == []
