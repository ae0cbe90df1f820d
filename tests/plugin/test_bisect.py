"""The first kernel under which a suite fails, found by running it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_kvmlab.lab.kernels import kernels_at_hand
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.spec.kernel import flavour_of
from tests.plugin.project import Project

SUITE = """
import pytest

@pytest.mark.kvm(image="micro")
def test_it(guest):
    assert guest.succeed("uname -r").strip() not in {broken!r}
"""


@pytest.fixture(scope="module")
def kernels(store: Path) -> list[str]:
    """Three kernels that follow one another, the newest last."""
    found = [each for each in kernels_at_hand(None, Store(store)) if flavour_of(each, "amd64") == "amd64"]
    return found[-3:]


def bisect(project: Project, good: str, bad: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [
        Path(sys.executable).with_name("kvmlab"),
        "bisect",
        "--good",
        good,
        "--bad",
        bad,
        "--",
    ]
    return subprocess.run(
        [*command, *arguments],
        cwd=project.folder,
        env=project.full_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_first_kernel_that_fails_is_named_in_a_sentence(project: Project, kernels: list[str]) -> None:
    good, broken, bad = kernels
    project.write("test_it.py", SUITE.format(broken=[broken, bad]))
    done = bisect(project, good, bad, "-q", "test_it.py")
    assert done.stdout == (
        f"{broken} is the first kernel under which the tests fail; {good} is good (1 runs, 3 kernels)\n"
    ), done.stderr
    assert f"test_it[kernel={broken}]" in done.stderr
    assert not (project.folder / ".pytest_cache" / "kvmlab-bisect.json").exists()
    assert (project.folder / "kvmlab-artifacts" / f"bisect-{broken}" / "run.json").exists()


def test_a_kernel_under_which_nothing_ran_is_passed_by(project: Project, kernels: list[str]) -> None:
    good, middle, bad = kernels
    project.write("test_it.py", "import pytest\n\n@pytest.mark.skip\ndef test_it(guest):\n    pass\n")
    done = bisect(project, good, bad, "test_it.py")
    assert re.search(rf"is {re.escape(bad)}, or one of those .*: {re.escape(middle)};", done.stdout)


def test_arguments_that_pytest_does_not_take_end_the_search(project: Project, kernels: list[str]) -> None:
    done = bisect(project, kernels[0], kernels[-1], "no_such_file.py")
    assert done.returncode == 1
    assert "pytest ended with exit status 4 under the kernel" in done.stderr


def test_two_kernels_of_different_flavours_have_nothing_between(project: Project, kernels: list[str]) -> None:
    assert "there is nothing between" in bisect(project, kernels[0], "6.1-cloud", "test_it.py").stderr
