"""A run that ends before its tests do: the guests go with it, and nothing is left."""

import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.plugin.project import Project, finished

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
