"""A run that ends before its tests do: the guests go with it, and nothing is left."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.plugin.project import Project, finished, section_of

HANGS = """
import pytest

@pytest.mark.kvm(image="micro")
@pytest.mark.timeout(3, func_only=True)
def test_hangs(guest):
    guest.run("sleep 1000", timeout=1000)

def test_next(): ...
"""

WAITS = """
import pathlib, time, pytest

@pytest.mark.kvm(image="micro")
def test_waits(guest):
    pathlib.Path("up").touch()
    time.sleep(1000)
"""

LOSES_ITS_HOST = """
import pathlib, time, pytest
pytestmark = pytest.mark.kvm(image="micro")

def test_asks(guest):
    pathlib.Path("up").touch()
    guest.run("sleep 1000", timeout=1000)

def test_next(guest): ...
"""


def test_a_timeout_fails_its_test_and_the_next_one_runs(project: Project) -> None:
    project.write("test_it.py", HANGS)
    result = project.pytest("--kvm-lab")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*Timeout*3.0s*", "*kvmlab: guest guest*", "phases: *"])


def test_a_timeout_that_ends_the_process_leaves_nothing(project: Project) -> None:
    project.write("test_it.py", HANGS)
    result = project.pytest("--kvm-lab", "--timeout-method=thread")
    result.stdout.fnmatch_lines(["*Timeout*"])
    wait_until(lambda: project.run_folders() == [] and project.processes() == [])


@pytest.mark.parametrize("moment", ["up", "booting"])
def test_ctrl_c_ends_the_guest_with_the_run(project: Project, moment: str) -> None:
    project.write("test_it.py", WAITS)
    process = project.start("--kvm-lab", "--kvm-keep=failed")
    wait_until(lambda: moment_has_come(project, process, moment))
    process.send_signal(signal.SIGINT)
    result = finished(process)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert result.duration < 20


def test_ctrl_c_ends_the_guests_of_workers_with_the_run(project: Project) -> None:
    project.write("test_it.py", WAITS)
    process = project.start("--kvm-lab", "-n2")
    wait_until(lambda: moment_has_come(project, process, "up"))
    process.send_signal(signal.SIGINT)
    result = finished(process)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert result.duration < 20


def test_a_run_whose_keeper_is_killed_says_so_in_each_test(project: Project) -> None:
    project.write("test_it.py", LOSES_ITS_HOST)
    process = project.start("--kvm-lab")
    wait_until(lambda: moment_has_come(project, process, "up"))
    keeper = keeper_of(project)
    os.kill(keeper, signal.SIGKILL)
    result = finished(process)
    for test in ("test_asks", "test_next"):
        told = section_of(str(result.stdout), test)
        assert f"ended, and its guests with it: its keeper (process {keeper}) was killed" in told
        assert "what to do: run the tests again" in told
        assert "in phase 'host': this is no verdict" in told
    assert "client socket is closed" not in str(result.stdout)


def keeper_of(project: Project) -> int:
    (record,) = project.runs.glob("*/keeper.json")
    return int(json.loads(record.read_text())["pid"])


def moment_has_come(project: Project, process: subprocess.Popen[str], moment: str) -> bool:
    assert process.poll() is None, "the run ended too soon"
    if moment == "up":
        return (project.folder / "up").exists()
    return any("qemu-system" in line and "guest=kvl-" in line for line in project.processes())


def wait_until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)
