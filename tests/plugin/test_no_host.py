"""Where no guest can be started, every test that needs one is an error with the reason, never a skip."""

import os
import shutil
from pathlib import Path

import pytest

from tests.plugin.project import Project

TESTS = """
import pytest

@pytest.mark.kvm(image="micro")
def test_guest(guest): ...

@pytest.mark.kvm(image="micro")
def test_shared(shared_guest): ...

def test_host(kvm_host): ...

def test_without_a_guest(): ...
"""


def path_without(*programs: str, folder: Path) -> str:
    """A PATH on which everything is but some programs."""
    folder.mkdir()
    for place in reversed([*os.environ["PATH"].split(os.pathsep), "/usr/sbin", "/sbin"]):
        for program in Path(place).glob("*"):
            if program.name not in programs:
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program)
    return str(folder)


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "workers"])
def test_without_qemu_every_test_is_an_error_that_names_it(project: Project, workers: list[str]) -> None:
    assert shutil.which("qemu-system-x86_64")
    project.write("test_it.py", TESTS)
    path = path_without("qemu-system-x86_64", folder=project.folder / "bin")
    result = project.pytest("--kvm-lab", *workers, PATH=path)
    result.assert_outcomes(errors=3, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["HostError: *qemu-system-x86_64*", "*see: kvmlab doctor, check 'qemu'*"])


def test_without_the_library_of_libvirt_the_remedy_is_told(project: Project) -> None:
    project.write("libvirt.py", "raise ImportError('libvirt.so.0: cannot open shared object file')")
    project.write("test_it.py", TESTS)
    result = project.pytest("--kvm-lab", PYTHONPATH=str(project.folder))
    result.assert_outcomes(errors=3, passed=1)
    result.stdout.fnmatch_lines(["HostError: *libvirt.so.0: cannot open*", "*apt install libvirt0*"])


def test_an_unreachable_libvirt_is_an_error_of_every_test(project: Project) -> None:
    project.write("test_it.py", TESTS)
    uri = "qemu+unix:///system?socket=/nonexistent"
    result = project.pytest("--kvm-lab", f"--kvm-host={uri}")
    result.assert_outcomes(errors=3, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"kvmlab: no guests can be started: libvirt does not answer on {uri}*"])
    result.stdout.fnmatch_lines(
        ["HostError: libvirt does not answer on *No such file or directory*", f"*what to do: *'{uri}' list*"]
    )
