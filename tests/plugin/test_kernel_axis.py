"""Tests that run once under each kernel that is asked for."""

import json
import re
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import debian
from pytest_kvmlab.lab.kernels import kernels_at_hand
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.spec.kernel import PACKAGE, flavour_of
from tests.plugin.project import Project

TESTS = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

def test_shares(shared_guest, kvm_kernel):
    print(f"shared under {kvm_kernel}: {shared_guest.succeed('uname -r').strip()}.")

@pytest.mark.parametrize("card", ["a"])
def test_runs(guest, card, kvm_kernel):
    assert guest.kernel == guest.succeed("uname -r").strip()
    print(f"under {kvm_kernel}: {guest.kernel}.")

@pytest.mark.kvm(kernel="==OTHER")
def test_is_for_one(guest):
    assert guest.kernel == "OTHER_RELEASE"

@pytest.mark.kvm(kernel="image")
def test_has_its_own(guest):
    print(f"its own: {guest.kernel}.")

def test_wants_no_guest():
    pass
"""


@pytest.fixture(scope="module")
def other(store: Path, micro: str) -> str:
    """The newest kernel at hand that is not the image's."""
    found = kernels_at_hand(None, Store(store))
    return [each for each in found if flavour_of(each, "amd64") == "amd64" and each != micro][-1]


@pytest.fixture(scope="module")
def micro(store: Path) -> str:
    """The kernel of the image."""
    image = Store(store).find("micro")
    assert image
    assert image.manifest.kernel_version
    return image.manifest.kernel_version


def numbers(release: str) -> str:
    return re.split(r"[+-](?=\D)|\+", release)[0]


@pytest.fixture(scope="module")
def run(module_project: Project, other: str) -> pytest.RunResult:
    tests = TESTS.replace("OTHER_RELEASE", other).replace("OTHER", numbers(other))
    module_project.write("test_it.py", tests)
    asked = ["--kvm-kernel=image", f"--kvm-kernel={numbers(other)}"]
    return module_project.pytest("--kvm-lab", "-v", "-rA", *asked)


def test_each_test_runs_once_under_each_kernel(run: pytest.RunResult, micro: str, other: str) -> None:
    assert f"under image: {micro}." in run.outlines
    assert f"under {numbers(other)}: {other}." in run.outlines
    assert f"shared under {numbers(other)}: {other}." in run.outlines
    run.assert_outcomes(passed=7, skipped=1)


def test_the_kernel_is_the_last_word_of_the_id(run: pytest.RunResult, other: str) -> None:
    run.stdout.fnmatch_lines([f"PASSED*::test_runs[[]a-kernel={numbers(other)}[]]*"])


def test_a_test_that_is_for_other_kernels_is_skipped_with_the_reason(
    run: pytest.RunResult, micro: str, other: str
) -> None:
    run.stdout.fnmatch_lines([f"SKIPPED*is for kernels =={numbers(other)}; that of micro is {micro}"])


def test_a_mark_that_names_a_kernel_wins(run: pytest.RunResult, micro: str) -> None:
    run.stdout.fnmatch_lines(["PASSED*::test_has_its_own"])
    assert f"its own: {micro}." in run.outlines


def test_a_test_without_guests_runs_once(run: pytest.RunResult) -> None:
    run.stdout.fnmatch_lines(["PASSED*::test_wants_no_guest"])


@pytest.mark.usefixtures("run")
def test_the_record_tells_the_kernel_apart_from_the_image(
    module_project: Project, micro: str, other: str
) -> None:
    record = json.loads((module_project.folder / "kvmlab-artifacts" / "run.json").read_text())
    guests = [guest for test in record["tests"] for guest in test["guests"]]
    assert {guest["kernel"] for guest in guests} == {micro, other}
    assert {guest["image"] for guest in guests} == {"micro"}


@pytest.mark.usefixtures("run")
def test_a_shared_guest_that_makes_way_for_the_next_kernel_is_no_guest_of_that_test(
    module_project: Project, micro: str, other: str
) -> None:
    record = json.loads((module_project.folder / "kvmlab-artifacts" / "run.json").read_text())
    kernels = [
        [guest["kernel"] for guest in test["guests"]]
        for test in record["tests"]
        if "test_shares" in test["id"]
    ]
    assert sorted(kernels) == sorted([[micro], [other]])


def test_a_kernel_that_does_not_exist_is_an_error_with_the_nearest(project: Project) -> None:
    project.write("test_it.py", TESTS.split("def ", maxsplit=1)[0] + "def test_it(guest):\n    pass\n")
    result = project.pytest("--kvm-lab", "--kvm-kernel=linux-image-6.1.0-1-amd64")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no kernel 'linux-image-6.1.0-1-amd64'*the nearest: 6.1.0-*"])


def test_a_wrong_option_is_a_usage_error(project: Project) -> None:
    project.write("test_it.py", TESTS)
    result = project.pytest("--kvm-lab", "--kvm-kernel=vmlinuz")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--kvm-kernel: should be 'image', a version" in result.outlines[0]


@pytest.mark.usefixtures("run")  # has put the package into the store
def test_somebodys_own_kernel_boots(project: Project, store: Path, other: str) -> None:
    (package,) = debian.resolve([f"{PACKAGE}{other}"])
    debian.unpack(debian.pooled(store / "packages", package), project.folder / "mine")
    project.write("test_it.py", TESTS)
    path = f"mine/boot/vmlinuz-{other}"
    result = project.pytest("--kvm-lab", "-rA", f"--kvm-kernel={path}", "-k", "test_runs")
    result.assert_outcomes(passed=1, deselected=4)
    assert f"under {path}: {other}." in result.outlines
