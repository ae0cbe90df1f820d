"""Runs that are compared with a baseline, and what that does to their exit status."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugin.project import Project

OK, FAILED = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED
TESTS = """
import os
import pytest

def test_steady(): ...
def test_broken(): assert "broken" not in os.environ["PLANTED"]
def test_always_broken(): assert False, "as ever"
"""
KNOWN = """
[[test]]
id = "test_it.py::test_broken"
reason = "planted"
link = "https://bugs.example.org/1"
until = 2999-12-31
"""
# A guest that does not end is not to be had from a sound libvirt.
UNENDING = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    session.config.pluginmanager.get_plugin("kvmlab-resets").failures.append("guest did not end")
"""
# The driver of the random numbers is taken away, the kernel is told to print a complaint, and one test fails.
GUEST = """
import os
import pytest

PLANTED = os.environ["PLANTED"]
BLACKLIST = " module_blacklist=virtio_rng" if PLANTED else ""
pytestmark = pytest.mark.kvm(image="micro", cmdline="console=ttyS0 random.trust_cpu=on" + BLACKLIST)

@pytest.mark.parametrize("number", range(3))
def test_it(guest, number):
    guest.succeed("true")
    if PLANTED and number == 1:
        guest.succeed("echo x > $(ls -d /sys/fs/ext4/vd*)/trigger_fs_error")
"""
# It loads a module, which no later run lacks that does without this test, or does it last.
LOADS = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

def test_loads(guest):
    guest.succeed("modprobe usb-storage")
def test_steady(guest):
    guest.succeed("true")
"""


def kvmlab(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("kvmlab"), *arguments],
        cwd=project.folder,
        env=project.full_environment(XDG_DATA_HOME=str(project.folder / "data")),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run(project: Project, *arguments: str, planted: str = "") -> pytest.RunResult:
    data = str(project.folder / "data")
    return project.pytest("--kvm-lab", *arguments, PLANTED=planted, XDG_DATA_HOME=data)


@pytest.fixture
def saved(project: Project) -> Project:
    """A project with a baseline of a run in which one test failed."""
    project.write("test_it.py", TESTS)
    run(project)
    assert kvmlab(project, "baseline", "save", "first").stdout == "first: 1 runs, 3 tests\n"
    return project


@pytest.mark.parametrize(
    ("planted", "fail_on", "status"),
    [
        ("", "failure", FAILED),
        ("", "regression", OK),
        ("", "slowdown", OK),
        ("broken", "regression", FAILED),
    ],
)
def test_the_exit_status_is_the_verdict_that_was_asked_for(
    saved: Project, planted: str, fail_on: str, status: int
) -> None:
    result = run(saved, "--kvm-baseline=first", f"--kvm-fail-on={fail_on}", planted=planted)
    assert result.ret == status
    assert ("newly failing: test_it.py::test_broken" in str(result.stdout)) is bool(planted)
    assert "1 tests fail as before" in str(result.stdout)


def test_a_run_that_stops_at_a_failure_is_no_verdict_on_the_rest(saved: Project) -> None:
    assert run(saved, "-x", "--kvm-baseline=first", "--kvm-fail-on=regression").ret == FAILED


def test_under_xdist_it_is_the_same(saved: Project) -> None:
    result = run(saved, "-n2", "--kvm-baseline=first", "--kvm-fail-on=regression", planted="broken")
    assert result.ret == FAILED
    assert "1 regressions" in str(result.stdout)


def test_a_known_issue_stays_green(saved: Project) -> None:
    saved.write("known.toml", KNOWN)
    arguments = ["--kvm-baseline=first", "--kvm-fail-on=regression", "--kvm-known-issues=known.toml"]
    result = run(saved, *arguments, planted="broken")
    assert result.ret == OK
    assert "planted (https://bugs.example.org/1)" in str(result.stdout)


def test_a_run_that_was_interrupted_stays_interrupted(saved: Project) -> None:
    saved.write("test_unreadable.py", "import nothing_of_that_name")
    result = run(saved, "--kvm-baseline=first", "--kvm-fail-on=regression")
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_files_that_cannot_be_read_are_no_part_of_the_verdict(saved: Project) -> None:
    saved.write("test_unreadable.py", "import nothing_of_that_name")
    options = ["--continue-on-collection-errors", "--kvm-baseline=first", "--kvm-fail-on=regression"]
    result = run(saved, *options)
    assert result.ret == FAILED
    assert "nothing is worse than before" in str(result.stdout)


def test_a_guest_that_did_not_end_is_no_part_of_the_verdict(saved: Project) -> None:
    saved.write("conftest.py", UNENDING)
    result = run(saved, "--kvm-baseline=first", "--kvm-fail-on=regression")
    assert result.ret == FAILED
    assert "nothing is worse than before" in str(result.stdout)


def test_a_baseline_without_overlap_is_told(saved: Project) -> None:
    saved.write("test_other.py", "def test_other(): ...")
    result = run(saved, "test_other.py", "--kvm-baseline=first", "--kvm-fail-on=regression")
    assert result.ret == FAILED
    assert "have no test in common" in str(result.stdout)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--kvm-baseline=frist"], "there is no baseline frist (did you mean 'first'?)"),
        (["--kvm-baseline=missing.json"], "missing.json cannot be read"),
        (["--kvm-baseline=test_it.py"], "there is no baseline test_it.py"),
        (["--kvm-fail-on=regression"], "needs a baseline"),
    ],
)
def test_a_wrong_baseline_is_a_usage_error(saved: Project, arguments: list[str], told: str) -> None:
    result = run(saved, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert told in str(result.stdout)


def test_baselines_are_listed_shown_and_removed(saved: Project) -> None:
    assert re.search(r"^first +1 +3 ", kvmlab(saved, "baseline", "list").stdout, re.MULTILINE)
    (listed,) = json.loads(kvmlab(saved, "baseline", "list", "--json").stdout)
    assert (listed["name"], listed["runs"], listed["tests"]) == ("first", 1, 3)
    assert saved.folder.name in kvmlab(saved, "baseline", "show", "first").stdout
    assert json.loads(kvmlab(saved, "baseline", "show", "first", "--json").stdout)["name"] == "first"
    assert kvmlab(saved, "baseline", "remove", "first").returncode == 0
    assert kvmlab(saved, "baseline", "list").stdout == "no baselines\n"


def test_a_name_is_not_taken_twice_by_accident(saved: Project) -> None:
    again = kvmlab(saved, "baseline", "save", "first")
    assert again.returncode == 1
    assert "there is a baseline first already" in again.stderr
    assert kvmlab(saved, "baseline", "save", "first", "--replace").returncode == 0


@pytest.mark.parametrize("name", ["../first", "", ".hidden"])
def test_a_name_that_leaves_the_folder_is_refused(saved: Project, name: str) -> None:
    assert "a baseline's name is" in kvmlab(saved, "baseline", "save", name).stderr


def test_the_command_compares_files_folders_and_baselines(saved: Project) -> None:
    run(saved, "--kvm-artifacts=now", planted="broken")
    found = kvmlab(saved, "compare", "first", "now", "now/run.json")
    assert found.returncode == 1
    assert found.stdout.count("newly failing  test_it.py::test_broken") == 2
    table = [line.split() for line in found.stdout.splitlines()[-4:]]
    assert [(line[0], *line[-4:]) for line in table] == [
        ("RUNS", "TESTS", "FAILING", "WORSE", "SLOWER"),
        ("first", "unknown", platform.release(), "3", "1"),
        ("now", "3", "2", "1", "0"),
        ("now/run.json", "3", "2", "1", "0"),
    ]
    assert kvmlab(saved, "compare", "now", "now/run.json").returncode == 0
    assert "nothing to compare with" in kvmlab(saved, "compare", "first").stderr


def test_the_command_prints_json_and_the_schema(saved: Project) -> None:
    sides = ["first", "kvmlab-artifacts", "--html", "page.html"]
    (found,) = json.loads(kvmlab(saved, "compare", *sides, "--json").stdout)
    assert found["regressions"] == []
    assert "nothing is worse than before" in (saved.folder / "page.html").read_text()
    assert json.loads(kvmlab(saved, "baseline", "schema").stdout)["title"] == "pytest-kvmlab run"


def test_what_a_test_loads_itself_is_not_lost_by_the_next_run(project: Project) -> None:
    project.write("test_it.py", LOADS)
    run(project)
    kvmlab(project, "baseline", "save", "both")
    result = run(project, "-ktest_steady", "--kvm-baseline=both", "--kvm-fail-on=regression")
    assert result.ret == OK
    assert "usb_storage" not in str(result.stdout)


def test_what_was_planted_in_guests_is_found_and_nothing_else(project: Project) -> None:
    project.write("test_it.py", GUEST)
    assert run(project).ret == OK
    kvmlab(project, "baseline", "save", "sound")
    assert run(project, "--kvm-baseline=sound", "--kvm-fail-on=slowdown").ret == OK
    assert run(project, "--kvm-artifacts=now", planted="yes").ret == FAILED
    (found,) = json.loads(kvmlab(project, "compare", "sound", "now", "--json").stdout)
    assert sorted(found["regressions"]) == [
        "guest (micro) lost driver of virtio virtio:d00000004v00001af4",
        "guest (micro) lost module virtio_rng",
        "kernel: fs-error: EXT4-fs error (device vda): trigger_test_error:N: comm sh: x",
        "test_it.py::test_it[1] fails",
    ]
