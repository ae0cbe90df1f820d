"""Memory is shared with other runs: here with a claim of this test's own, which stands for them."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from pytest_kvmlab.journal import Journal
from pytest_kvmlab.lab.capacity import Capacity, claims_folder
from pytest_kvmlab.lab.claims import Ledger
from tests.plugin.project import Project, finished

MIB = 2**20

LAB = """
[guest.web]
image = "micro"
memory = "192MiB"

[guest.db]
image = "micro"
memory = "128MiB"
"""


@pytest.fixture
def lab(project: Project) -> Project:
    project.write("pair.lab.toml", LAB)
    project.write("test_pair.py", "def test_pair(lab): assert False")
    return project


@pytest.fixture
def another_run() -> Iterator[None]:
    capacity = Capacity("0badcafe", "main", 256 * MIB, 0, Journal(), lambda *_: None)
    with capacity.memory(256 * MIB, "another test", at_once=True):
        yield


@pytest.mark.usefixtures("another_run")
def test_a_lab_that_gets_no_memory_in_time_says_who_has_it(lab: Project) -> None:
    result = lab.pytest("--kvm-lab", "--kvm-wait=0.5", "--kvm-memory=512MiB")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "*waiting for memory: 320 MiB, held by *another test (run 0badcafe, main, process *",
            "*test_pair* waited 0.5 s in vain for memory: 320 MiB, where all guests together may have*",
            "*256 MiB held by another test (run 0badcafe, main, process *",
        ]
    )


def test_a_lab_that_needs_more_memory_than_there_is_does_not_wait_for_it(lab: Project) -> None:
    result = lab.pytest("--kvm-lab", "--kvm-memory=256MiB")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*needs 320 MiB of memory for its guests; all guests on this machine may*"])


EACH_OTHERS = """
import pathlib, time, pytest

HERE = pathlib.Path(__file__).parent

def both_are_up(number):
    (HERE / f"up-{number}").touch()
    until = time.monotonic() + 150
    while not (both := len(list(HERE.glob("up-*"))) == 2) and time.monotonic() < until:
        time.sleep(0.1)
    return both

@pytest.mark.parametrize("number", range(2))
def test_more_than_a_lab(lab, make_guest, number):
    assert both_are_up(number)
    assert make_guest(image="micro", memory="256MiB").succeed("echo here") == "here\\n"
"""


_WITHOUT_CLAIMS = 'mount -t tmpfs none "$0" && exec "$@"'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide the claims of other runs")
def test_two_labs_that_want_the_memory_of_each_other_do_not_wait_for_ever(project: Project) -> None:
    project.write("pair.lab.toml", LAB)
    project.write("test_pair.py", EACH_OTHERS)
    # With other runs' claims they would wait for those; and other runs for these.
    apart = ["unshare", "--mount", "sh", "-c", _WITHOUT_CLAIMS, str(claims_folder().parent)]
    run = subprocess.Popen(
        [*apart, *project.command("--kvm-lab", "-n2", "--kvm-memory=700MiB")],
        cwd=project.folder,
        env=project.full_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    finished(run).assert_outcomes(passed=2)


def memory_of(run: str) -> list[tuple[int, str]]:
    """How much memory a run has, and in what way."""
    with Ledger(claims_folder() / "memory-1").claims() as claims:
        return [(claim.amount, claim.state) for claim in claims if f"(run {run}, " in claim.who]


def test_the_memory_of_kept_guests_is_reserved_as_long_as_they_stay(project: Project) -> None:
    project.write("test_one.py", "import pytest\n@pytest.mark.kvm(image='micro')\ndef test(guest): ...")
    project.pytest("--kvm-lab", "--kvm-keep=always").assert_outcomes(passed=1)
    try:
        (run,) = project.run_folders()
        assert memory_of(run) == [(256 * MIB, "kept")]
    finally:
        subprocess.run(["kvmlab", "reap", "--kept"], env=project.full_environment(), check=True, timeout=60)
    assert memory_of(run) == []
